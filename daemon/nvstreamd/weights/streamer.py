"""How is every segment in memory when a pass needs it? One thread reads ahead through one backend.

The order never changes: all segments of a pass, then the next pass. The reader therefore runs on into the next pass
while the last tokens are sampled. It stops when every slot is filled, and goes on when one is released.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import xxhash

from nvdma.backend import Backend
from nvdma.errors import DmaError, ReadError, ShortRead
from nvdma.types import Read
from nvstreamd.errors import BadModelFile, ModelChanged, NvstreamError, StorageError, unexpected
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.manifest import Segment
from nvstreamd.weights.placement import Plan
from nvstreamd.weights.slots import Region, Slots

WAIT_SECONDS = 60.0


@dataclass(slots=True)
class _Fill:
    """A segment on its way into a region: how many reads are still missing, and whether it can be used."""

    segment: Segment
    region: Region
    missing: int
    ready: bool = False


@dataclass(slots=True)
class Counters:
    """What has happened since the start: bytes from the drive, bytes from memory, seconds the pass waited."""

    streamed_bytes: int = 0
    resident_bytes: int = 0
    waited_seconds: float = 0.0
    verified: set[str] = field(default_factory=set)


class Streamer:
    """Yields segments in pass order. `start` fills the resident ones and begins to read ahead."""

    def __init__(self, backend: Backend, slots: Slots, files: Sequence[OpenFile], segments: Sequence[Segment],
                 plan: Plan, block: int) -> None:
        self.backend = backend
        self.slots = slots
        self.files = files
        self.segments = segments
        self.plan = plan
        self.block = block
        self.counters = Counters()
        self._resident: dict[int, Region] = {}
        self._streamed = [index for index in range(len(segments)) if index not in plan.resident]
        self._changed = threading.Condition()
        self._fills: deque[_Fill] = deque()
        self._free: deque[Region] = deque()
        self._error: NvstreamError | None = None
        self._stopping = False
        self._tag = 0

    def start(self, stack: ExitStack) -> None:
        """Reads the resident segments, then starts the reader thread; `stack` stops it. Raises NvstreamError."""
        for index in sorted(self.plan.resident):
            region = self.slots.resident(self.segments[index].nbytes)
            self.fill_now(self.segments[index], region)
            self._resident[index] = region
        self._free.extend(self.slots.ring(self.plan.slots, self.plan.slot_bytes))
        if self._streamed:
            thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            thread.start()
            stack.callback(self._stop, thread)

    def fill_now(self, segment: Segment, region: Region) -> None:
        """Reads one segment and waits for it; only before the reader thread runs."""
        try:
            reads = deque(self._reads(segment, region))
            while reads or self.backend.in_flight:
                batch = [reads.popleft() for _ in range(min(len(reads), self._room()))]
                self.backend.submit(batch)
                self.backend.wait(WAIT_SECONDS)
        except DmaError as error:
            raise self._translated(error) from error
        self._verify(segment, region)

    @contextmanager
    def segment(self, index: int) -> Iterator[Region]:
        """Segment `index` of the pass, valid inside the with block. Indices come in order, pass after pass.

        Raises ModelChanged, BadModelFile or StorageError when it could not be read.
        """
        if index in self._resident:
            self.counters.resident_bytes += self.segments[index].nbytes
            yield self._resident[index]
            return
        fill = self._next(index)
        try:
            yield fill.region
        finally:
            with self._changed:
                self._fills.popleft()
                self._free.append(fill.region)
                self._changed.notify_all()

    def check_unchanged(self) -> None:
        """Raises ModelChanged when a file is not what it was when it was opened."""
        for file in self.files:
            file.check_unchanged()

    def _next(self, index: int) -> _Fill:
        begin = time.monotonic()
        with self._changed:
            done = self._changed.wait_for(lambda: self._error or (self._fills and self._fills[0].ready), WAIT_SECONDS)
            self.counters.waited_seconds += time.monotonic() - begin
            if self._error is not None:
                raise self._error
            name = self.segments[index].name
            if not done:
                raise StorageError(f"{self.files[0].path}: {name} did not arrive in {WAIT_SECONDS:.0f} s",
                                   "look at the drive's health and at dmesg")
            assert self._fills[0].segment.name == name, "segments are taken in pass order"
            return self._fills[0]

    def _stop(self, thread: threading.Thread) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        thread.join()

    def _run(self) -> None:
        """The reader thread: owns the backend until it ends."""
        try:
            self._read_ahead()
        except DmaError as error:
            self._fail(self._translated(error))
        except NvstreamError as error:
            self._fail(error)
        except Exception as error:
            # A pass must not wait a minute for a thread that is no more. The drive has no fault.
            self._fail(unexpected(error, "reading ahead"))
            raise

    def _fail(self, error: NvstreamError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _read_ahead(self) -> None:
        position = 0
        pending: deque[Read] = deque()
        owners: dict[int, _Fill] = {}
        while True:
            with self._changed:
                idle = not pending and not self.backend.in_flight
                self._changed.wait_for(lambda: self._stopping or self._free or not idle)  # noqa: B023
                if self._stopping:
                    return
                while self._free and len(pending) < self.backend.facts.depth:
                    segment = self.segments[self._streamed[position]]
                    position = (position + 1) % len(self._streamed)
                    self._begin(segment, self._free.popleft(), pending, owners)
            self.backend.submit([pending.popleft() for _ in range(min(len(pending), self._room()))])
            for completion in self.backend.wait(WAIT_SECONDS):
                self._complete(owners.pop(completion.tag))

    def _begin(self, segment: Segment, region: Region, pending: deque[Read], owners: dict[int, _Fill]) -> None:
        reads = self._reads(segment, region)
        fill = _Fill(segment, region, len(reads))
        pending.extend(reads)
        owners.update((read.tag, fill) for read in reads)
        self._fills.append(fill)

    def _complete(self, fill: _Fill) -> None:
        fill.missing -= 1
        if fill.missing:
            return
        self._verify(fill.segment, fill.region)
        with self._changed:
            fill.ready = True
            self.counters.streamed_bytes += fill.segment.read_bytes
            self._changed.notify_all()

    def _room(self) -> int:
        return self.backend.facts.depth - self.backend.in_flight

    def _reads(self, segment: Segment, region: Region) -> list[Read]:
        reads = []
        for extent in segment.extents:
            for done in range(0, extent.length, self.block):
                length = min(self.block, extent.length - done)
                self._tag += 1
                reads.append(Read(self._tag, extent.file, extent.offset + done, length,
                                  region.offset + extent.target + done))
        return reads

    def _verify(self, segment: Segment, region: Region) -> None:
        """Holds a packed segment against its checksum the first time it is read."""
        if segment.checksum is None or segment.name in self.counters.verified:
            return
        found = xxhash.xxh3_64_intdigest(region.view[: segment.nbytes])
        if found != segment.checksum:
            names = " and ".join(sorted({self.files[extent.file].path for extent in segment.extents}))
            raise BadModelFile(f"{names}: {segment.name} has checksum {found:016x}, expected {segment.checksum:016x}",
                               "the store is damaged: import the model again", field=segment.name)
        self.counters.verified.add(segment.name)

    def _translated(self, error: DmaError) -> NvstreamError:
        if isinstance(error, ShortRead):
            return ModelChanged(error.what, "a file became shorter while the model was in use: restore it, load again")
        kind = "read" if isinstance(error, ReadError) else "transfer"
        return StorageError(f"{kind} failed: {error.what}", error.hint)
