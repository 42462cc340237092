"""How is VRAM shared out? One allocation for the engine's life, handed out front to back."""

from __future__ import annotations

from contextlib import ExitStack

from nvdma.errors import GpuOutOfMemory
from nvdma.gpu.driver import Driver
from nvdma.memory import Memory, MemoryKind, Span

# Kernels read in pieces of 16 bytes, copies are fastest from multiples of this on.
ALIGNMENT = 256


class Vram:
    """`nbytes` of a card's memory. `open` takes them; its stack gives them back."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.driver = driver
        self.nbytes = nbytes
        self._used = 0

    def open(self, stack: ExitStack) -> None:
        """Raises GpuOutOfMemory."""
        address = self.driver.allocate(self.nbytes)
        stack.callback(self.driver.free, address)
        self.memory = Memory(MemoryKind.VRAM, address, self.nbytes)

    @property
    def left(self) -> int:
        """Bytes that are not handed out."""
        return self.nbytes - self._used

    def take(self, nbytes: int) -> Span:
        """A part, from the end of the last one on. Raises GpuOutOfMemory, and ValueError for less than nothing."""
        if nbytes < 0:
            raise ValueError(f"{nbytes} bytes of VRAM")
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if size > self.left:
            raise GpuOutOfMemory(f"{size} bytes of VRAM: {self.left} are left of {self.nbytes}")
        span = Span(self.memory, self._used, size)
        self._used += size
        return span

    def give_back(self, span: Span) -> None:
        """Takes the last part back."""
        if span.offset + span.nbytes != self._used:
            raise ValueError(f"the part at {span.offset} is not the last that was handed out")
        self._used = span.offset
