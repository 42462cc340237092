"""Which reads are in flight, how far is each, and what is there to hand out?

The bookkeeping every backend shares: admission (bounds, alignment, depth), continuation of partial
completions, and outcomes kept in order until `take`. It does no I/O and takes no lock: one thread owns it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nvdma.errors import DmaError, InvalidRead, NothingInFlight, QueueFull, ReadError, ReadFailed, ShortRead
from nvdma.types import BackendFacts, Completion, Read, Source

# A transient errno of a regular file is over after a few tries; an endless one becomes an error.
TRANSIENT_TRIES = 64
TAG_LIMIT = 1 << 64


@dataclass(slots=True)
class Pending:
    """A read in flight: ``expected`` bytes lie before the end of its file, ``done`` have arrived."""

    read: Read
    expected: int
    done: int = 0
    tries: int = 0


def check_sources(sources: Sequence[Source]) -> None:
    """Raises ReadFailed for the first source whose descriptor is closed or not open for reading."""
    for source in sources:
        try:
            flags = fcntl.fcntl(source.fd, fcntl.F_GETFL)
        except OSError as error:
            raise ReadFailed(source.path, 0, source.size, error.errno or errno.EBADF) from error
        if flags & os.O_ACCMODE == os.O_WRONLY:
            raise ReadFailed(source.path, 0, source.size, errno.EBADF)


class Ledger:
    """The reads of one open backend."""

    def __init__(self, facts: BackendFacts, sources: Sequence[Source], arena_nbytes: int) -> None:
        self._facts = facts
        self._sources = sources
        self._arena_nbytes = arena_nbytes
        self._pending: dict[int, Pending] = {}
        self._outcomes: deque[tuple[int, Completion | DmaError]] = deque()

    @property
    def in_flight(self) -> int:
        """Number of reads admitted and not handed out."""
        return len(self._pending) + len(self._outcomes)

    @property
    def outstanding(self) -> int:
        """Number of reads whose bytes may still arrive."""
        return len(self._pending)

    @property
    def has_outcomes(self) -> bool:
        """Whether `take` would hand something out or raise."""
        return bool(self._outcomes)

    def admit(self, reads: Sequence[Read]) -> list[Pending]:
        """Note all of ``reads``, or none: raises QueueFull or InvalidRead."""
        if self.in_flight + len(reads) > self._facts.depth:
            raise QueueFull(self._facts.depth, self.in_flight, len(reads))
        tags = {tag for tag, _ in self._outcomes}
        for read in reads:
            if not 0 <= read.tag < TAG_LIMIT or read.tag in self._pending or read.tag in tags:
                raise InvalidRead(f"tag {read.tag} is in flight already or outside 0..2**64-1")
            self._check(read)
            tags.add(read.tag)
        admitted = [Pending(read, self._expected(read)) for read in reads]
        self._pending.update((pending.read.tag, pending) for pending in admitted)
        return admitted

    def landed(self, tag: int, result: int) -> Pending | None:
        """Note ``result`` (bytes read, or a negative errno) of the last attempt at ``tag``.

        Returns the read when it must be continued from ``done``, None when its outcome is known.
        """
        pending = self._pending[tag]
        if result < 0:
            return self._failed(pending, -result)
        pending.tries = 0
        pending.done += result
        if pending.done >= pending.expected:
            self._finish(pending, Completion(tag, pending.expected))
            return None
        # Direct I/O ends off the alignment only at the end of the file: going on from there would be EINVAL.
        if result == 0 or pending.done % self._facts.alignment:
            self._finish(pending, self._short(pending))
            return None
        return pending

    def refuse(self, tag: int, error: ReadError) -> None:
        """Note that the read failed for good."""
        self._finish(self._pending[tag], error)

    def take(self) -> list[Completion]:
        """Completions up to the first error; raises the error when it comes first."""
        completions: list[Completion] = []
        while self._outcomes:
            outcome = self._outcomes[0][1]
            if isinstance(outcome, DmaError):
                if completions:
                    break
                self._outcomes.popleft()
                raise outcome
            self._outcomes.popleft()
            completions.append(outcome)
        return completions

    def check_waitable(self) -> None:
        """Raises NothingInFlight when a wait could never end."""
        if not self.in_flight:
            raise NothingInFlight(f"backend {self._facts.name}: wait was called with no read in flight")

    def describe_outstanding(self) -> str:
        """The outstanding reads in words, for a message."""
        first = next(iter(self._pending.values()), None)
        if first is None:
            return f"backend {self._facts.name}: no read"
        read = first.read
        where = f"tag {read.tag}: {read.length} bytes at offset {read.offset} of {self._path(read)}"
        return f"{len(self._pending)} reads of backend {self._facts.name} (the oldest is {where})"

    def clear(self) -> None:
        """Forget every read."""
        self._pending.clear()
        self._outcomes.clear()

    def _path(self, read: Read) -> str:
        return self._sources[read.source].path

    def _expected(self, read: Read) -> int:
        return min(read.length, self._sources[read.source].size - read.offset)

    def _failed(self, pending: Pending, number: int) -> Pending | None:
        transient = number in (errno.EINTR, errno.EAGAIN)
        if transient and pending.tries < TRANSIENT_TRIES:
            pending.tries += 1
            return pending
        read = pending.read
        error = ReadFailed(
            self._path(read), read.offset + pending.done, read.length - pending.done, number, tag=read.tag
        )
        self._finish(pending, error)
        return None

    def _short(self, pending: Pending) -> ShortRead:
        read = pending.read
        return ShortRead(self._path(read), read.offset, pending.expected, pending.done, tag=read.tag)

    def _finish(self, pending: Pending, outcome: Completion | DmaError) -> None:
        del self._pending[pending.read.tag]
        self._outcomes.append((pending.read.tag, outcome))

    def _check(self, read: Read) -> None:
        if not 0 <= read.source < len(self._sources):
            raise InvalidRead(f"tag {read.tag}: source {read.source} of {len(self._sources)} does not exist")
        alignment, size = self._facts.alignment, self._sources[read.source].size
        right = (0 <= read.offset < size and 0 < read.length <= self._facts.max_read
                 and 0 <= read.target <= self._arena_nbytes - read.length
                 and not (read.offset % alignment or read.length % alignment or read.target % alignment))
        if not right:
            self._explain(read)

    def _explain(self, read: Read) -> None:
        """Raises InvalidRead saying what is wrong with it."""
        source = self._sources[read.source]
        where = f"{source.path}: tag {read.tag}"
        if not 0 <= read.offset < source.size:
            raise InvalidRead(f"{where}: offset {read.offset} is outside the file of {source.size} bytes")
        if not 0 < read.length <= self._facts.max_read:
            raise InvalidRead(f"{where}: length {read.length} is not in 1..max_read ({self._facts.max_read})")
        if read.target < 0 or read.target + read.length > self._arena_nbytes:
            raise InvalidRead(
                f"{where}: target {read.target} + length {read.length} is outside the arena "
                f"of {self._arena_nbytes} bytes"
            )
        for field in ("offset", "length", "target"):
            if getattr(read, field) % self._facts.alignment:
                raise InvalidRead(
                    f"{where}: {field} {getattr(read, field)} is no multiple of the alignment "
                    f"{self._facts.alignment}"
                )
