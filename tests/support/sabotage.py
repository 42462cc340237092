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
TESTS = SABOTEUR.parents[1]
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
    """A daemon, and what the FIFOs are called by which its engines are told what to do wrong: `order`-PID."""

    daemon: Daemon
    order: Path

    def lay(self, code: str) -> int:
        """Has an engine run Python, where `channel` and `socket` are its end of the pair; returns its pid at once."""
        self.done.unlink(missing_ok=True)
        pids: list[int] = []

        def begun() -> bool:
            pids.extend(self._written(dedent(code).encode()))
            return bool(pids)

        self.daemon.wait("an engine that obeys", begun)
        return pids[0]

    def run(self, code: str) -> None:
        """The same, but returns when it has run; what it raised fails the test."""
        raised = self.tried(code)
        assert not raised, raised

    def tried(self, code: str) -> str:
        """The same, but returns what it raised, nothing if that is nothing.

        What was ordered may end the engine before the engine can say that it has obeyed.
        """
        engine = Path(f"/proc/{self.lay(code)}")
        self.daemon.wait("the engine to obey", lambda: self.done.exists() or not engine.exists())
        return self.done.read_text() if self.done.exists() else ""

    def _written(self, order: bytes) -> list[int]:
        """Writes an order if the engine reads, and returns whom it went to: fifo(7), O_NONBLOCK.

        One that ends may read as well: the model's own is meant, or the newest while a model has none.
        """
        serving = [engine.pid for engine in self.daemon.status().engines if engine.pid]
        names = [Path(f"{self.order}-{pid}") for pid in serving] or sorted(
            self.order.parent.glob(f"{self.order.name}-*"), key=lambda path: path.stat().st_mtime_ns)
        try:
            end = os.open(names[-1], os.O_WRONLY | os.O_NONBLOCK)
        except (OSError, IndexError):
            return []
        with open(end, "wb") as out:
            out.write(order)
        return [int(names[-1].name.rpartition("-")[2])]

    @property
    def done(self) -> Path:
        """What is there when an order was obeyed."""
        return Path(f"{self.order}.done")

    def fail_once(self, module: str, path: str, raises: str) -> None:
        """Has a function of an engine, `path` in `module`, raise the next time that it is called."""
        self.run(FAIL_ONCE.format(module=module, path=path, raises=raises))


@contextmanager
def sabotaged(directory: Path, *arguments: str, card: bool = False) -> Iterator[Sabotaged]:
    """A daemon in `directory` whose engines can be made to fail, and have a `card` of fibers if that is wanted."""
    order = directory / "sabotage"
    places = [str(SABOTEUR), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(places), "NVSTREAM_SABOTAGE": str(order)}
    if card:
        environment["NVSTREAM_FIBER_CARD"] = "1"
    with running(directory, *arguments, environment=environment) as daemon:
        yield Sabotaged(daemon, order)
