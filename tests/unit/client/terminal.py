"""How does a test run the command line: inside this process, as a process, or on a terminal?"""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvstream.cli.app import build
from unit.client.peer import PATIENCE

COMMAND = (sys.executable, "-m", "nvstream.cli")


def run_inside(*args: str) -> int:
    """The exit code of the command, run in this process."""
    try:
        build()(args=list(args), prog_name="nvstream")
    except SystemExit as exited:
        return int(exited.code or 0)
    raise AssertionError("the command did not exit")


def standard_input(content: bytes) -> io.TextIOWrapper:
    """What takes the place of this process's standard input, and is no terminal."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What the command printed: one object a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def start(socket: Path, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process, with pipes where `options` say nothing else."""
    streams: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen([*COMMAND, *args], env=environment(socket), **(streams | options))


def environment(socket: Path) -> dict[str, str]:
    """This process's environment, without what would change how the command talks."""
    dropped = ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return kept | {"NVSTREAM_SOCKET": str(socket), "TERM": "xterm"}


@dataclass
class Terminal:
    """The command on a pseudo-terminal: what it shows, and keys typed at it."""

    process: subprocess.Popen[bytes]
    descriptor: int
    shown: str = ""
    _bytes: bytes = b""

    @classmethod
    def start(cls, socket: Path, *args: str) -> Terminal:
        """Starts the command as the terminal's foreground.

        The shell leads a new session, so the terminal that it opens becomes its own, and Ctrl-C a signal.
        Not pty.fork: a fork of this process runs gRPC's fork handlers, which abort the child at times.
        """
        ours, theirs = pty.openpty()
        shell = ("sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs))
        process = subprocess.Popen([*shell, *COMMAND, *args], env=environment(socket), start_new_session=True)
        # The terminal ends when its last user does; until the shell has opened it, that is this process.
        terminal = cls(process, ours)
        terminal._read()
        os.close(theirs)
        return terminal

    def read_until(self, text: str) -> str:
        """Everything shown so far, once `text` is in it."""
        while text not in self.shown:
            self._read()
        return self.shown

    def type(self, keys: str) -> None:
        """Types; what was shown before is forgotten."""
        self.shown, self._bytes = "", b""
        os.write(self.descriptor, keys.encode())

    def wait(self) -> int:
        """The exit code, once the command has ended; what it showed meanwhile is in `shown`."""
        try:
            while True:
                self._read()
        except OSError:
            # Linux says EIO when the last process has closed the terminal.
            pass
        os.close(self.descriptor)
        return self.process.wait(PATIENCE)

    def _read(self) -> None:
        ready, _, _ = select.select([self.descriptor], [], [], PATIENCE)
        assert ready, f"the terminal shows nothing more after {self.shown!r}"
        self._bytes += os.read(self.descriptor, 4096)
        self.shown = self._bytes.decode(errors="replace")
