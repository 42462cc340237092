"""Which reads are in flight, how far is each, and what is there to hand out?

The bookkeeping every backend shares: admission (bounds, alignment, depth), continuation of partial
completions, and outcomes kept in order until `take`. It does no I/O and takes no lock: one thread owns it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nvdma.errors import InvalidRead, NothingInFlight, QueueFull, ReadError, ReadFailed, ShortRead
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
        self._sizes = [source.size for source in sources]
        self._arena_nbytes = arena_nbytes
        self._pending: dict[int, Pending] = {}
        # Outcomes in order: completions up to the first error, then each error with the completions that came after it.
        self._completions: list[Completion] = []
        self._errors: deque[tuple[ReadError, list[Completion]]] = deque()

    @property
    def in_flight(self) -> int:
        """Number of reads admitted and not handed out."""
        flying = len(self._pending) + len(self._completions)
        return flying + sum(1 + len(behind) for _, behind in self._errors) if self._errors else flying

    @property
    def outstanding(self) -> int:
        """Number of reads whose bytes may still arrive."""
        return len(self._pending)

    @property
    def has_outcomes(self) -> bool:
        """True when `take` would hand something out or raise."""
        return bool(self._completions or self._errors)

    def admit(self, reads: Sequence[Read]) -> list[Pending]:
        """Note all of ``reads``, or none: raises QueueFull or InvalidRead."""
        if self.in_flight + len(reads) > self._facts.depth:
            raise QueueFull(self._facts.depth, self.in_flight, len(reads))
        admitted = self._checked(reads)
        self._pending.update(admitted)
        return list(admitted.values())

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
            self.arrived((pending,))
            return None
        # Direct I/O ends off the alignment only at the end of the file: going on from there would be EINVAL.
        if result == 0 or pending.done % self._facts.alignment:
            self.refuse(tag, self._short(pending))
            return None
        return pending

    def arrived(self, pendings: Iterable[Pending]) -> None:
        """Note that these have all their bytes, in this order."""
        waiting, completions = self._pending, self._errors[-1][1] if self._errors else self._completions
        for pending in pendings:
            tag = pending.read.tag
            del waiting[tag]
            completions.append(Completion(tag, pending.expected))

    def refuse(self, tag: int, error: ReadError) -> None:
        """Note that the read failed for good."""
        del self._pending[tag]
        self._errors.append((error, []))

    def take(self) -> list[Completion]:
        """Completions up to the first error; raises the error when it comes first."""
        if self._errors and not self._completions:
            error, self._completions = self._errors.popleft()
            raise error
        completions, self._completions = self._completions, []
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
        self._completions.clear()
        self._errors.clear()

    def _path(self, read: Read) -> str:
        return self._sources[read.source].path

    def _failed(self, pending: Pending, number: int) -> Pending | None:
        transient = number in (errno.EINTR, errno.EAGAIN)
        if transient and pending.tries < TRANSIENT_TRIES:
            pending.tries += 1
            return pending
        read = pending.read
        error = ReadFailed(
            self._path(read), read.offset + pending.done, read.length - pending.done, number, tag=read.tag
        )
        self.refuse(read.tag, error)
        return None

    def _short(self, pending: Pending) -> ShortRead:
        read = pending.read
        return ShortRead(self._path(read), read.offset, pending.expected, pending.done, tag=read.tag)

    def _checked(self, reads: Sequence[Read]) -> dict[int, Pending]:
        """The reads to admit, by tag, in order. One pass with everything at hand: each read of a drive comes by."""
        facts, sizes, room, waiting = self._facts, self._sizes, self._arena_nbytes, self._pending
        alignment, max_read = facts.alignment, facts.max_read
        ended = self._ended()
        checked: dict[int, Pending] = {}
        for read in reads:
            tag, source, offset, length, target = read
            if not 0 <= tag < TAG_LIMIT or tag in waiting or tag in checked or tag in ended:
                raise InvalidRead(f"tag {tag} is in flight already or outside 0..2**64-1")
            if not 0 <= source < len(sizes):
                raise InvalidRead(f"tag {tag}: source {source} of {len(sizes)} does not exist")
            left = sizes[source] - offset
            if (offset < 0 or left <= 0 or not 0 < length <= max_read or not 0 <= target <= room - length
                    or offset % alignment or length % alignment or target % alignment):
                self._explain(read)
            checked[tag] = Pending(read, length if length < left else left)
        return checked

    def _ended(self) -> set[int | None]:
        """The tags of reads whose outcome was not handed out."""
        tags: set[int | None] = {tag for tag, _ in self._completions}
        for error, behind in self._errors:
            tags.add(error.tag)
            tags.update(tag for tag, _ in behind)
        return tags

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
