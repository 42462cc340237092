"""How are bytes read where nothing better is allowed? preadv(2) through the page cache, by a few threads.

Works on every file system and kernel, wants no alignment, costs a copy and page-cache memory.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from nvdma.arena import Arena
from nvdma.errors import DeadlineExceeded
from nvdma.ledger import Ledger, Pending, check_sources
from nvdma.types import BackendFacts, Completion, Read, Source

MAX_READ = 64 << 20
CLOSE_TIMEOUT_SECONDS = 30.0

# One attempt: tag, descriptor, file offset, arena offset, bytes.
Job = tuple[int, int, int, int, int]


class PreadBackend:
    """Buffered reads of ``sources`` into ``arena`` by ``depth`` threads; see `nvdma.backend.Backend`.

    ``max_read`` is in bytes. The descriptors must stay open until `close` has returned.
    """

    def __init__(
        self, sources: Sequence[Source], arena: Arena, depth: int = 8, *, max_read: int = MAX_READ
    ) -> None:
        self.facts = BackendFacts("pread", depth, max_read, 1, False, False)
        self._sources = tuple(sources)
        self._arena = arena
        self._ledger = Ledger(self.facts, self._sources, arena.nbytes)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._closing = Event()
        self._threads: list[Thread] = []

    @property
    def in_flight(self) -> int:
        """Number of reads whose outcome has not been handed out."""
        return self._ledger.in_flight

    def open(self) -> None:
        """Start the threads. Raises ReadFailed for a descriptor that cannot be read."""
        if self._threads:
            raise RuntimeError("the backend is open already")
        check_sources(self._sources)
        self._advise(os.POSIX_FADV_SEQUENTIAL)
        self._closing.clear()
        self._threads = [
            Thread(target=self._work, name=f"nvdma-pread-{number}", daemon=True)
            for number in range(self.facts.depth)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, reads: Sequence[Read]) -> None:
        """Starts ``reads``, all or none. Raises QueueFull and InvalidRead."""
        self._push(self._ledger.admit(reads))

    def poll(self) -> list[Completion]:
        """The reads completed since the last call, perhaps none. Raises ReadFailed or ShortRead, one at a time."""
        self._reap()
        return self._ledger.take()

    def wait(self, timeout: float) -> list[Completion]:
        """At least one completion within ``timeout`` seconds.

        Raises what `poll` raises, DeadlineExceeded, and NothingInFlight without any read to wait for.
        """
        self._ledger.check_waitable()
        deadline = time.monotonic() + timeout
        self._reap()
        while not self._ledger.has_outcomes:
            try:
                self._note(*self._results.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                raise DeadlineExceeded(self._ledger.describe_outstanding(), timeout) from None
            self._reap()
        return self._ledger.take()

    def close(self) -> None:
        """Drops queued reads, lets begun ones end, stops the threads. Raises DeadlineExceeded, may be called again."""
        if not self._threads:
            return
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise DeadlineExceeded(self._ledger.describe_outstanding(), CLOSE_TIMEOUT_SECONDS)
        self._threads = []
        self._jobs, self._results = SimpleQueue(), SimpleQueue()
        self._ledger.clear()
        self._advise(os.POSIX_FADV_NORMAL)

    def _push(self, pendings: Iterable[Pending]) -> None:
        for pending in pendings:
            read, done = pending.read, pending.done
            fd = self._sources[read.source].fd
            self._jobs.put((read.tag, fd, read.offset + done, read.target + done, read.length - done))

    def _reap(self) -> None:
        with suppress(Empty):
            while True:
                self._note(*self._results.get_nowait())

    def _note(self, tag: int, result: int) -> None:
        pending = self._ledger.landed(tag, result)
        if pending is not None:
            self._push([pending])

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._closing.is_set():
                tag, fd, offset, target, length = job
                self._results.put((tag, self._read(fd, offset, target, length)))

    def _read(self, fd: int, offset: int, target: int, length: int) -> int:
        """Bytes read, or a negative errno, as io_uring would say it."""
        try:
            with self._arena.view[target : target + length] as stretch:
                return os.preadv(fd, [stretch], offset)
        except OSError as error:
            return -(error.errno or errno.EIO)

    def _advise(self, advice: int) -> None:
        for source in self._sources:
            # Advice only: a file without a page cache, or closed since, loses nothing.
            with suppress(OSError):
                os.posix_fadvise(source.fd, 0, 0, advice)
