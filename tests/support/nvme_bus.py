"""Which memory does the scripted NVMe controller reach? As behind an IOMMU: what was shared with it, nothing else."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from nvdma.pci.dma import DmaMemory

PAGE = 4096


class DmaFault(Exception):
    """The device touched an address that was not shared with it."""


class Bus:
    """The device's view of memory, page by page; `faults` are its accesses that an IOMMU would have refused."""

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}
        self.faults: list[str] = []

    def share(self, memory: DmaMemory) -> DmaMemory:
        """Lets the device reach `memory`."""
        for offset in range(0, memory.nbytes, PAGE):
            self._pages[memory.bus.at(offset)] = memory.address + offset
        return memory

    def unshare(self, memory: DmaMemory) -> None:
        """From here on the device reaches it no more."""
        for offset in range(0, memory.nbytes, PAGE):
            del self._pages[memory.bus.at(offset)]

    def read(self, address: int, nbytes: int) -> bytes:
        """What the device reads. Raises DmaFault."""
        return b"".join(ctypes.string_at(at, length) for at, length in self._stretches(address, nbytes))

    def write(self, address: int, data: bytes) -> None:
        """What the device writes. Raises DmaFault."""
        done = 0
        for at, length in self._stretches(address, len(data)):
            ctypes.memmove(at, data[done : done + length], length)
            done += length

    def _stretches(self, address: int, nbytes: int) -> Iterator[tuple[int, int]]:
        while nbytes:
            page, offset = address // PAGE * PAGE, address % PAGE
            if page not in self._pages:
                self.faults.append(f"{nbytes} bytes at {address:#x}")
                raise DmaFault(hex(address))
            length = min(nbytes, PAGE - offset)
            yield self._pages[page] + offset, length
            address, nbytes = address + length, nbytes - length


def walk_prps(bus: Bus, prp1: int, prp2: int, nbytes: int, violations: list[str]) -> Iterator[tuple[int, int]]:
    """The stretches of a command's buffer (Base Specification 2.0, section 4.1.1), lists and their chains followed."""
    first = min(nbytes, PAGE - prp1 % PAGE)
    if prp1 % 4:
        violations.append(f"PRP1 {prp1:#x} is no multiple of 4")
    yield prp1, first
    left = nbytes - first
    if not left and prp2:
        violations.append(f"PRP2 is {prp2:#x} though PRP1 covers {nbytes} bytes")
    if 0 < left <= PAGE:
        yield _whole(prp2, violations), left
    elif left:
        yield from _walk_list(bus, prp2, left, violations)


def walk_sgl(address: int, word: int, nbytes: int, violations: list[str]) -> Iterator[tuple[int, int]]:
    """The one stretch of an SGL Data Block descriptor (Base Specification 2.0, section 4.1.2.1)."""
    length, kind = word & 0xFFFFFFFF, word >> 32
    if kind or length != nbytes or address % 4:
        violations.append(f"descriptor of {length} bytes at {address:#x}, {kind:#x}, for a buffer of {nbytes}")
    yield address, length


def _walk_list(bus: Bus, address: int, left: int, violations: list[str]) -> Iterator[tuple[int, int]]:
    if address % 8:
        violations.append(f"a PRP list at {address:#x} is no multiple of 8")
    while left:
        room, wanted = (PAGE - address % PAGE) // 8, -(-left // PAGE)
        entries = list(struct.unpack(f"<{min(room, wanted)}Q", bus.read(address, 8 * min(room, wanted))))
        if wanted > room:
            address = entries.pop()
        for entry in entries:
            yield _whole(entry, violations), min(left, PAGE)
            left -= min(left, PAGE)


def _whole(entry: int, violations: list[str]) -> int:
    if entry % PAGE:
        violations.append(f"PRP {entry:#x} has an offset and is not the first")
    return entry
