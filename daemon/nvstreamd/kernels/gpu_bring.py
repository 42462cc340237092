"""How do weights come into a card's memory? A copy as the file has them, then packed for the kernels where they lie.

Copies run in a stream of their own, and packing in another, so that the link never waits: two rooms take turns.
"""

from __future__ import annotations

from nvdma.gpu.driver import Driver
from nvdma.gpu.event import EventFence, Events
from nvdma.memory import Span
from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_form import TILE, Form, up
from nvstreamd.kernels.gpu_launch import REPACK_QUADS, Functions, Launch
from nvstreamd.kernels.gpu_structs import GpuRepack

ROOMS = 2
# Two a segment, and as many more as are asked for late.
EVENTS = 256
REPACK_THREADS = TILE * REPACK_QUADS
# Kernels read whole words, the last of them past the end.
BEHIND = 256


class Bringer:
    """Brings segments, in order. Host memory that the card cannot reach by itself is copied by the driver, slower."""

    def __init__(self, driver: Driver, functions: Functions) -> None:
        self.driver = driver
        self.functions = functions
        # Its own: the thread that moves weights is another than the one that computes. It has time, and a processor
        # that it kept busy would be one less for the products beside a card.
        self.events = Events(driver, EVENTS, eager=0.0)
        self._copies, self._packs = driver.stream(), driver.stream()
        self._rooms = [0] * ROOMS
        self._room_bytes = 0
        self._packed: list[EventFence | None] = [None] * ROOMS
        self._turn = 0

    def bring(self, form: Form, raw: Span, to: int) -> EventFence:
        """Begins to bring what lies at `raw` to the VRAM address `to`. Raises DmaError, KernelError."""
        if not form.tensors:
            return self.events.record(self._packs, "nothing")
        if form.raw_bytes > raw.nbytes:
            raise KernelError(f"tensors of {form.raw_bytes} bytes in a segment of {raw.nbytes}", "report this")
        self._make_room(form.raw_bytes)
        turn = self._turn
        self._turn = (turn + 1) % ROOMS
        room, before = self._rooms[turn], self._packed[turn]
        if before is not None:
            before.hold(self._copies)
        self.driver.copy(room, raw.address, form.raw_bytes, self._copies)
        self.events.record(self._copies, "a copy").hold(self._packs)
        for placed in form.tensors.values():
            source, target = room + placed.raw_offset, to + placed.offset
            if not placed.packed:
                self.driver.copy(target, source, placed.raw_bytes, self._packs)
                continue
            rows, columns = placed.shape
            quads = up(columns, 128)
            call = GpuRepack(from_=source, to=target, rows=rows, columns=columns, quads=quads)
            blocks = up(rows, TILE), up(quads, REPACK_QUADS), 1
            Launch(self.functions.of_type(placed.type, "repack_tiles"), blocks, REPACK_THREADS, 0, call).begin(
                self.driver, self._packs)
        done = self.events.record(self._packs, "weights on their way into VRAM")
        self._packed[turn] = done
        return done

    def _make_room(self, nbytes: int) -> None:
        if nbytes <= self._room_bytes:
            return
        self.close()
        for turn in range(ROOMS):
            self._rooms[turn] = self.driver.allocate(nbytes + BEHIND)
        self._room_bytes = nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of VRAM that it takes."""
        return ROOMS * (self._room_bytes + BEHIND) if self._room_bytes else 0

    def close(self) -> None:
        """Gives its rooms back."""
        for room in self._rooms:
            if room:
                self.driver.free(room)
        self._rooms = [0] * ROOMS
        self._room_bytes = 0
        self._packed = [None] * ROOMS
