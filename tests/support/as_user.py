"""How does a test call a daemon as another user? In a process that loads everything, then becomes that user.

The other way round it could not: a virtual environment below root's home is nobody else's to read.

    python -m support.as_user UID FUNCTION JSON     runs FUNCTION(**JSON); prints what it returns

FUNCTION is one of support.attacks or of support.bystanders.

What it runs may print lines, and read lines from standard input to be told when to end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
READY = "ready"
END_SECONDS = 120.0


def may_become_others() -> bool:
    """Whether this process can."""
    return os.getuid() == 0


class Other:
    """A process of another user, under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """The next line that it prints; blocks until there is one."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the process of another user ended with status {self.process.wait()}"
        return text.strip()

    def wait_ready(self) -> None:
        """Returns when it has said that what it does is under way."""
        found = self.line()
        assert found == READY, found

    def tell(self, text: str = "") -> None:
        """Sends it a line, which it may wait for."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def result(self) -> object:
        """What it returned, once it has ended."""
        return json.loads(self.line())


@contextmanager
def other(uid: int, function: str, **arguments: object) -> Iterator[Other]:
    """A process of user `uid` that runs `function` of support.attacks or bystanders; it is killed at the end."""
    command = [sys.executable, "-m", "support.as_user", str(uid), function, json.dumps(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield Other(process)
    finally:
        process.kill()
        process.wait(timeout=END_SECONDS)
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()


def say_ready() -> None:
    """Tells the test that what it asked for is under way."""
    sys.stdout.write(READY + "\n")


def wait_told() -> None:
    """Blocks until the test says so, or is gone."""
    sys.stdin.readline()


def main() -> None:
    """Loads, becomes the user, runs."""
    from support import attacks, bystanders

    uid, function, arguments = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    result = getattr(attacks if hasattr(attacks, function) else bystanders, function)(**arguments)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    # Threads of calls that nobody reads any more are not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
