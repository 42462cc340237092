"""How does a test start a daemon whose engines it can make fail, and how does it do that? See support.saboteur."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from support.daemon import Daemon, running

SABOTEUR = Path(__file__).resolve().parent / "saboteur"
# Replaces FUNCTION of MODULE by one that raises once. `{raises}` is an expression.
FAIL_ONCE = """
import importlib
place = importlib.import_module({module!r})
for name in {path!r}.split(".")[:-1]:
    place = getattr(place, name)
name = {path!r}.split(".")[-1]
before = getattr(place, name)
def once(*given, **named):
    setattr(place, name, before)
    raise {raises}
setattr(place, name, once)
"""


@dataclass(frozen=True, slots=True)
class Sabotaged:
    """A daemon, and the FIFO by which its one engine is told what to do wrong."""

    daemon: Daemon
    order: Path

    def lay(self, code: str) -> None:
        """Has an engine run Python; returns when it has begun. `channel` and `socket` are its end of the pair."""
        self.done.unlink(missing_ok=True)
        self.daemon.wait("an engine that obeys", lambda: self._written(dedent(code).encode()))

    def run(self, code: str) -> None:
        """The same, but returns when it has run; what it raised fails the test."""
        raised = self.tried(code)
        assert not raised, raised

    def tried(self, code: str) -> str:
        """The same, but returns what it raised, nothing if that is nothing."""
        self.lay(code)
        self.daemon.wait("the engine to obey", self.done.exists)
        return self.done.read_text()

    def _written(self, order: bytes) -> bool:
        """Writes an order if an engine reads: fifo(7), O_NONBLOCK."""
        try:
            end = os.open(self.order, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        with open(end, "wb") as out:
            out.write(order)
        return True

    @property
    def done(self) -> Path:
        """What is there when an order was obeyed."""
        return Path(f"{self.order}.done")

    def fail_once(self, module: str, path: str, raises: str) -> None:
        """Has a function of an engine, `path` in `module`, raise the next time that it is called."""
        self.run(FAIL_ONCE.format(module=module, path=path, raises=raises))


@contextmanager
def sabotaged(directory: Path, *arguments: str) -> Iterator[Sabotaged]:
    """A daemon in `directory` whose engines can be made to fail."""
    order = directory / "sabotage"
    os.mkfifo(order)
    places = [str(SABOTEUR), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(places), "NVSTREAM_SABOTAGE": str(order)}
    with running(directory, *arguments, environment=environment) as daemon:
        yield Sabotaged(daemon, order)
