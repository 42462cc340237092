"""What does a person see on the terminal while nothing has come yet?"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

from nvstream.cli.output import printable
from nvstream.events import Accepted, Event, Phase, Progress
from nvstream.facts import ImportProgress
from nvstream.sizes import format_bytes, format_seconds


class Waiting:
    """One line on stderr, only on a terminal, gone for good once `done` was called."""

    def __init__(self) -> None:
        self._status: Status | None = None
        if sys.stderr.isatty():
            self._status = Status("", console=Console(stderr=True))

    def show(self, line: str) -> None:
        """Shows the line in place of the one before."""
        if self._status is not None:
            self._status.update(Text(printable(line).replace("\n", " ")))
            self._status.start()

    def done(self) -> None:
        """Takes the line away; must come before anything else is written to the terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done()


def describe(event: Event) -> str | None:
    """The line for an event; None for events that say nothing about waiting."""
    match event:
        case Accepted(queue_position=position, eta_seconds=eta):
            return f"queued, {position} ahead{_when(eta)}" if position else f"starting{_when(eta)}"
        case Progress():
            return _describe_phase(event)
    return None


def describe_import(progress: ImportProgress) -> str:
    """The line for an import."""
    of = f"{format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}"
    earlier = f", {format_bytes(progress.bytes_resumed)} from an earlier attempt"
    return f"importing, {of}{earlier if progress.bytes_resumed else ''}"


def _when(eta: float | None) -> str:
    return f", its turn in about {format_seconds(eta)}" if eta else ""


def _describe_phase(progress: Progress) -> str:
    done, total = progress.done, progress.total
    match progress.phase:
        case Phase.QUEUED:
            return f"queued, {max(total - done, 0)} ahead{_when(progress.eta_seconds)}"
        case Phase.LOADING:
            return f"loading the model, {done * 100 // total} %" if total else "loading the model"
        case Phase.PREFILL:
            return f"reading the prompt, {done} of {total} tokens" if total else "reading the prompt"
        case Phase.RECOVERING:
            return "the engine is being replaced, the request goes on"
    return "waiting"
