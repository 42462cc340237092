"""How does a layer above behave when reads complete late, out of order, short or not at all?

A scripted backend for tests: the same contract over bytes in memory. A script says for each tag after how
many polls its read ends and how. Nothing in the product imports it. `wait` never sleeps: it polls until
something is due, and a read that never ends is a deadline exceeded at once.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nvdma.arena import Arena
from nvdma.errors import DeadlineExceeded, ReadFailed
from nvdma.ledger import Ledger, Pending
from nvdma.types import BackendFacts, Completion, Read, Source

MAX_READ = 64 << 20


@dataclass(slots=True)
class Image:
    """A file in memory: ``size`` bytes, zero except for ``stretches`` (bytes by their offset)."""

    size: int
    stretches: dict[int, bytes] = field(default_factory=dict)

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``, fewer at the end."""
        end = max(offset, min(offset + length, self.size))
        data = bytearray(end - offset)
        for start, stretch in self.stretches.items():
            low, high = max(start, offset), min(start + len(stretch), end)
            if low < high:
                data[low - offset : high - offset] = stretch[low - start : high - start]
        return bytes(data)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one read ends: after ``polls`` more polls (None: never), with ``errno``, or after ``cut`` bytes.

    ``cut`` is one partial completion: 0 ends the read short, more is continued on the next poll.
    """

    polls: int | None = 0
    errno: int | None = None
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """``endings`` by tag (a read without one ends at the next poll); ``newest_first`` reverses the order."""

    endings: Mapping[int, Ending] = field(default_factory=dict)
    newest_first: bool = False


@dataclass(slots=True)
class _Attempt:
    pending: Pending
    ending: Ending
    polls_left: int | None


class ScriptedBackend:
    """Reads of ``images`` (by the path of a source) into ``arena``; see `nvdma.backend.Backend`."""

    def __init__(
        self,
        images: Mapping[str, Image],
        sources: Sequence[Source],
        arena: Arena,
        depth: int = 8,
        *,
        alignment: int = 1,
        max_read: int = MAX_READ,
        script: Script | None = None,
    ) -> None:
        self.facts = BackendFacts("memory", depth, max_read, alignment, False, False)
        self._images = images
        self._sources = tuple(sources)
        self._arena = arena
        self._script = script or Script()
        self._ledger = Ledger(self.facts, self._sources, arena.nbytes)
        self._attempts: list[_Attempt] = []

    @property
    def in_flight(self) -> int:
        """Number of reads whose outcome has not been handed out."""
        return self._ledger.in_flight

    def open(self) -> None:
        """Raises ReadFailed for a source without an image."""
        for source in self._sources:
            if source.path not in self._images:
                raise ReadFailed(source.path, 0, source.size, errno.EBADF)

    def submit(self, reads: Sequence[Read]) -> None:
        """Start ``reads``; see `Backend.submit`."""
        for pending in self._ledger.admit(reads):
            ending = self._script.endings.get(pending.read.tag, Ending())
            self._attempts.append(_Attempt(pending, ending, ending.polls))

    def poll(self) -> list[Completion]:
        """What the script says has completed; see `Backend.poll`."""
        self._advance()
        return self._ledger.take()

    def wait(self, timeout: float) -> list[Completion]:
        """Poll until something is due; ``timeout`` (seconds) only appears in the message of a deadline."""
        self._ledger.check_waitable()
        while not self._ledger.has_outcomes:
            if all(attempt.polls_left is None for attempt in self._attempts):
                raise DeadlineExceeded(self._ledger.describe_outstanding(), timeout)
            self._advance()
        return self._ledger.take()

    def close(self) -> None:
        """Drop what has not completed; see `Backend.close`."""
        self._attempts.clear()
        self._ledger.clear()

    def _advance(self) -> None:
        due = [attempt for attempt in self._attempts if attempt.polls_left == 0]
        self._attempts = [attempt for attempt in self._attempts if attempt.polls_left != 0]
        for attempt in self._attempts:
            if attempt.polls_left is not None:
                attempt.polls_left -= 1
        for attempt in reversed(due) if self._script.newest_first else due:
            again = self._ledger.landed(attempt.pending.read.tag, self._land(attempt))
            if again is not None:
                self._attempts.append(_Attempt(again, Ending(), 0))

    def _land(self, attempt: _Attempt) -> int:
        """Put the bytes of one attempt into the arena; their number, or a negative errno."""
        if attempt.ending.errno is not None:
            return -attempt.ending.errno
        read, done = attempt.pending.read, attempt.pending.done
        length = read.length - done if attempt.ending.cut is None else attempt.ending.cut
        data = self._images[self._sources[read.source].path].read(read.offset + done, length)
        target = read.target + done
        self._arena.view[target : target + len(data)] = data
        return len(data)
