"""How does the driver get at a scripted controller? As at a real one: through `nvdma.pci.access.Access`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from nvdma.pci.dma import PAGE, BusAddresses, Contiguous, DmaMemory, Scattered
from nvdma.pci.mmio import Registers
from support.nvme_device import ScriptedDevice

FIRST_BUS_ADDRESS = 0x2_0000_0000
STRETCH = 1 << 32


@dataclass(slots=True)
class ScriptedAccess:
    """A function that is a ScriptedDevice. What is unmapped it can reach no more: doing so is a fault."""

    device: ScriptedDevice
    resets: int = 0
    masters: bool = False
    _stretches: Iterator[int] = field(default_factory=lambda: count(FIRST_BUS_ADDRESS, STRETCH))

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """See Access."""
        return self._share(view, address, Contiguous(next(self._stretches)), stack)

    def map_window(self, view: memoryview, address: int, stack: ExitStack) -> BusAddresses:
        """Shows it memory that stands for a window of a peer's BAR: each page elsewhere, none beside another."""
        places = np.random.default_rng(view.nbytes).permutation(-(-view.nbytes // PAGE)).astype(np.uint64)
        pages = np.uint64(next(self._stretches)) + places * np.uint64(2 * PAGE)
        return self._share(view, address, Scattered(pages), stack).bus

    def map_registers(self, stack: ExitStack) -> Registers:
        """See Access."""
        return self.device

    def enable_bus_master(self, stack: ExitStack) -> None:
        """See Access."""
        self.masters = True
        stack.callback(setattr, self, "masters", False)

    def reset(self) -> None:
        """See Access."""
        self.resets += 1
        self.device.reset_function()

    def _share(self, view: memoryview, address: int, bus: BusAddresses, stack: ExitStack) -> DmaMemory:
        memory = self.device.bus.share(DmaMemory(view[:], address, bus))
        stack.callback(self._unmap, memory)
        return memory

    def _unmap(self, memory: DmaMemory) -> None:
        assert not self.device.is_running() or self.resets, "memory is taken away from a controller that runs"
        self.device.bus.unshare(memory)
        memory.view.release()


class Sparse:
    """The content of a large namespace, of which only some stretches are not zero."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._stretches: dict[int, bytes] = {}

    def put(self, offset: int, data: bytes) -> None:
        """Bytes at a place where none were put before."""
        self._stretches[offset] = data

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, where: slice) -> bytes:
        begin, end, _ = where.indices(self.nbytes)
        found = bytearray(end - begin)
        for start, data in self._stretches.items():
            low, high = max(start, begin), min(start + len(data), end)
            if low < high:
                found[low - begin : high - begin] = data[low - start : high - start]
        return bytes(found)


def pages_of(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE
