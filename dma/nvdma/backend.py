"""What must every way of reading provide, so that nothing above can tell which one moved the bytes?

A backend is made with its sources and its arena, `open`ed, used by one thread at a time, and `close`d. Verbs
say whether they block: `submit` and `poll` never do, `wait` and `close` do and have a deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nvdma.types import BackendFacts, Completion, Read


class Backend(Protocol):
    """Moves bytes from sources into an arena, several reads at a time, in any order of completion."""

    @property
    def facts(self) -> BackendFacts:
        """The facts of this backend: what it is and wants; final once `open` has returned."""

    @property
    def in_flight(self) -> int:
        """Number of reads submitted whose completion or error has not been handed out yet."""

    def open(self) -> None:
        """Take descriptors, threads and kernel objects.

        Raises BackendUnavailable (with the reason) when this backend cannot serve these sources here and
        ReadFailed when a source's descriptor cannot be read at all.
        """

    def submit(self, reads: Sequence[Read]) -> None:
        """Start all of ``reads``, or none. Never blocks.

        Raises QueueFull when more than ``facts.depth`` would be in flight and InvalidRead when one breaks
        ``facts.alignment``, ``facts.max_read`` or the bounds of its source or of the arena.
        """

    def poll(self) -> list[Completion]:
        """The reads completed since the last call, perhaps none. Never blocks.

        Raises ReadFailed or ShortRead (with ``.tag``) for a read that failed, one at a time; the others
        stay valid and come from the next call.
        """

    def wait(self, timeout: float) -> list[Completion]:
        """At least one completion, waiting up to ``timeout`` seconds without holding the GIL.

        Raises what `poll` raises, DeadlineExceeded naming the outstanding reads, and NothingInFlight when
        there is nothing to wait for.
        """

    def close(self) -> None:
        """Give everything back; reads not finished are dropped. Calling it again does nothing.

        When it returns, no byte lands in the arena any more. Raises DeadlineExceeded when a read does not
        end: then the arena must stay, and close may be called again.
        """
