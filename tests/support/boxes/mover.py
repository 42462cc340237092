"""How do segments come in a simulated box? As the flow decides, over a drive and a link that take their time."""

from __future__ import annotations

from typing import cast

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd.engine.load import DEPTH
from nvstreamd.engine.measure import BLOCK
from nvstreamd.weights.flow.mover import Bringing, Filling, Mover, Orders
from nvstreamd.weights.flow.pools import Pool, Slot
from nvstreamd.weights.packed.manifest import Segment, align_up
from support.boxes.box import Box
from support.boxes.clock import Blocked, Channel, Clock, Ended

# Bytes of reads that are with the drive, or wait for it, below which the mover looks for more to do.
ENOUGH = 2 * DEPTH * BLOCK


class CountedPool(Pool):
    """Hands out slots of memory that is not there."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(Arena(nbytes))

    def take(self, nbytes: int) -> Slot:
        """A slot without bytes."""
        size = align_up(nbytes)
        assert self._used + size <= self.arena.nbytes, "more RAM is taken than there is"
        slot = Slot(Span(Memory(MemoryKind.PINNED, 0, self.arena.nbytes), self._used, size), memoryview(bytearray()))
        self._used += size
        self._slots.append(slot)
        return slot


class SimulatedMover(Mover):
    """Does what a mover does, in no thread: `decide` is its turn."""

    def __init__(self, box: Box, clock: Clock) -> None:
        super().__init__(cast(Backend, None), (), BLOCK, now=lambda: clock.now)
        self.clock = clock
        self.drive = Channel(clock, box.drive)
        self.orders: Orders | None = None
        self._reading = 0.0
        self._bringing = 0

    def fill(self, segment: Segment, slot: Slot) -> None:
        """Reads one segment and waits for it."""
        done = Ended(self.clock)
        self.drive.put(segment.read_bytes, done.end)
        done.wait(0.0)

    def run(self, orders: Orders) -> None:
        """There is no thread: whoever waits lets the clock call `decide`."""
        self.orders = orders

    def decide(self) -> None:
        """Begins what is to move next, as far as there is room for reads."""
        if self.orders is None:
            return
        while self._reading < ENOUGH and (load := self._chosen(self.orders)):
            if isinstance(load, Bringing):
                self._bring(load, self.orders)
            else:
                self._read(load, self.orders)

    def _chosen(self, orders: Orders) -> Filling | Bringing | None:
        self.clock.deciding = True
        try:
            return orders.choose(idle=not self._reading and not self._bringing)
        except Blocked:
            return None
        finally:
            self.clock.deciding = False

    def _read(self, load: Filling, orders: Orders) -> None:
        nbytes = float(load.segment.read_bytes)
        self._reading += nbytes

        def enough() -> None:
            self._reading -= nbytes - min(nbytes, ENOUGH)
            self.decide()

        def end() -> None:
            self._reading -= min(nbytes, ENOUGH)
            self.read_seconds = self.drive.seconds
            orders.arrived(load)

        if nbytes > ENOUGH:
            self.drive.put(nbytes - ENOUGH, enough)
        self.drive.put(min(nbytes, ENOUGH), end)

    def _bring(self, load: Bringing, orders: Orders) -> None:
        load.begin()
        self._bringing += 1

        def arrived() -> None:
            self._bringing -= 1
            orders.arrived(load)

        fence = load.fence
        assert isinstance(fence, Ended)
        fence.then(arrived)
