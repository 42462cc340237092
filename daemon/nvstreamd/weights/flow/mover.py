"""Who moves a segment's bytes? One thread, which asks what moves next, reads it through one backend, and says when.

It knows neither tiers nor passes: where a load goes and why is decided elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import xxhash

from nvdma.backend import Backend
from nvdma.errors import DmaError, GpuError, ReadError, ShortRead
from nvdma.fence import DONE, Fence
from nvdma.types import Read
from nvstreamd.errors import BadModelFile, CardLost, ModelChanged, NvstreamError, StorageError, unexpected
from nvstreamd.kernels.device import OwnMemory
from nvstreamd.trace import Trace
from nvstreamd.weights.flow.expert_cache import Fetch
from nvstreamd.weights.flow.near_cache import Promotion
from nvstreamd.weights.flow.policy import Move
from nvstreamd.weights.flow.pools import Slot
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import Segment

WAIT_SECONDS = 60.0
# How long a thread that waits for a device does not look at the drive.
LOOK_SECONDS = 3e-4


@dataclass(slots=True)
class Filling:
    """A segment on its way into a slot, and how many of its reads have not ended."""

    move: Move | Fetch
    segment: Segment
    slot: Slot
    missing: int = 0
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Bringing:
    """A segment on its way from host memory into a slot of the device's own, until its fence is done."""

    move: Move | Promotion
    segment: Segment
    source: Slot
    slot: Slot
    own: OwnMemory
    fence: Fence = DONE
    began: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Raises DmaError."""
        self.fence = self.own.bring(self.segment.by_name, self.source.span, self.slot.span)


class Orders(Protocol):
    """Who decides; every method is called by the mover's thread."""

    def wait(self, *, idle: bool) -> bool:
        """Returns when there may be something to move; at once unless `idle`. False: the end."""

    def choose(self, *, idle: bool) -> Filling | Bringing | None:
        """What moves next, None for nothing at the moment. Raises NvstreamError."""

    def arrived(self, load: Filling | Bringing) -> None:
        """The load's bytes are in its slot."""

    def failed(self, error: NvstreamError) -> None:
        """Nothing moves any more."""


class Mover:
    """Reads segments through a backend, in blocks of `block` bytes. In `read_seconds` reads were in flight.

    `now` is the clock, in seconds, of all that waits for what it moves.
    """

    def __init__(self, backend: Backend, files: Sequence[OpenFile], block: int, trace: Trace | None = None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self.files = files
        self.block = block
        self.trace = trace
        self.now = now
        self.read_seconds = 0.0
        self.verified: set[str] = set()
        self._tag = 0

    def fill(self, segment: Segment, slot: Slot) -> None:
        """Reads one segment and waits for it; only while no thread runs. Raises NvstreamError."""
        try:
            reads = deque(self._reads(segment, slot))
            while reads or self.backend.in_flight:
                batch = [reads.popleft() for _ in range(min(len(reads), self._room()))]
                self.backend.submit(batch)
                self.backend.wait(WAIT_SECONDS)
        except DmaError as error:
            raise self._translated(error) from error
        self._verify(segment, slot)

    def run(self, orders: Orders) -> None:
        """The thread: owns the backend until `orders` say that it is the end."""
        try:
            self._move(orders)
        except DmaError as error:
            orders.failed(self._translated(error))
        except NvstreamError as error:
            orders.failed(error)
        except Exception as error:
            # A pass must not wait a minute for a thread that is no more.
            orders.failed(unexpected(error, "reading ahead"))
            raise

    def _move(self, orders: Orders) -> None:
        pending: deque[Read] = deque()
        owners: dict[int, Filling] = {}
        bringing: deque[Bringing] = deque()
        try:
            while orders.wait(idle=not owners and not bringing):
                self._begin(pending, owners, bringing, orders)
                began, reads = self.now(), bool(owners)
                if bringing:
                    self._brought(bringing, orders, alone=not owners)
                if owners:
                    self._read(pending, owners, orders, alone=not bringing)
                if reads:
                    self.read_seconds += self.now() - began
        finally:
            # What is brought comes out of memory that is given back next.
            for load in bringing:
                load.fence.wait(WAIT_SECONDS)

    def _begin(self, pending: deque[Read], owners: dict[int, Filling], bringing: deque[Bringing],
               orders: Orders) -> None:
        """Begins what is to move next, as far as there is room for reads."""
        while len(pending) < self.backend.facts.depth and (load := orders.choose(idle=not owners and not bringing)):
            if isinstance(load, Bringing):
                load.begin()
                bringing.append(load)
                continue
            reads = self._reads(load.segment, load.slot)
            load.missing = len(reads)
            pending.extend(reads)
            owners.update((read.tag, load) for read in reads)

    def _read(self, pending: deque[Read], owners: dict[int, Filling], orders: Orders, *, alone: bool) -> None:
        """Reads on; waits for the drive where nothing else moves."""
        self.backend.submit([pending.popleft() for _ in range(min(len(pending), self._room()))])
        for completion in self.backend.wait(WAIT_SECONDS) if alone else self.backend.poll():
            self._complete(owners.pop(completion.tag), orders)

    def _brought(self, bringing: deque[Bringing], orders: Orders, *, alone: bool) -> None:
        """Notes what came into the device's memory, in order; waits for the first, for long only if it is alone."""
        if not bringing[0].fence.wait(WAIT_SECONDS if alone else LOOK_SECONDS) and alone:
            raise StorageError(f"waited {WAIT_SECONDS:.0f} s for {bringing[0].fence}", "look at dmesg for Xid messages")
        while bringing and bringing[0].fence.done():
            load = bringing.popleft()
            if self.trace is not None:
                self.trace.event("link", f"bring {load.segment.name}", load.began, self.now(),
                                 bytes=load.segment.nbytes)
            orders.arrived(load)

    def _complete(self, load: Filling, orders: Orders) -> None:
        load.missing -= 1
        if load.missing:
            return
        if self.trace is not None:
            self.trace.event("drive", f"read {load.segment.name}", load.began, self.now(),
                             bytes=load.segment.read_bytes)
        self._verify(load.segment, load.slot)
        orders.arrived(load)

    def _room(self) -> int:
        return self.backend.facts.depth - self.backend.in_flight

    def _reads(self, segment: Segment, slot: Slot) -> list[Read]:
        reads = []
        for extent in segment.extents:
            for done in range(0, extent.length, self.block):
                length = min(self.block, extent.length - done)
                self._tag += 1
                reads.append(Read(self._tag, extent.file, extent.offset + done, length,
                                  slot.span.offset + extent.target + done))
        return reads

    def _verify(self, segment: Segment, slot: Slot) -> None:
        """Holds a packed segment against its checksum the first time it is read."""
        if segment.checksum is None or segment.name in self.verified:
            return
        found = xxhash.xxh3_64_intdigest(slot.view[: segment.nbytes])
        if found != segment.checksum:
            names = " and ".join(sorted({self.files[extent.file].path for extent in segment.extents}))
            raise BadModelFile(f"{names}: {segment.name} has checksum {found:016x}, expected {segment.checksum:016x}",
                               "the store is damaged: import the model again", field=segment.name)
        self.verified.add(segment.name)

    def _translated(self, error: DmaError) -> NvstreamError:
        if isinstance(error, ShortRead):
            return ModelChanged(error.what, "a file became shorter while the model was in use: restore it, load again")
        if isinstance(error, GpuError):
            return CardLost(f"the card failed: {error}", error.hint)
        kind = "read" if isinstance(error, ReadError) else "transfer"
        return StorageError(f"{kind} failed: {error.what}", error.hint)
