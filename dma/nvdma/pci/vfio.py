"""How does a process without privilege use a PCIe function that was opened for it? (linux/vfio.h, type1)

Two descriptors are all it gets: the device's, for registers and configuration space, and the container's,
for the memory that the device may reach. When both are closed, however the process ended, the kernel resets the
function, clears its bus mastering and only then lets go of the pages: no read in flight lands in memory of somebody
else.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from nvdma.errors import ArenaExhausted
from nvdma.pci.dma import Contiguous, DmaMemory
from nvdma.pci.iova import IovaRange, IovaSpace
from nvdma.pci.mmio import MappedRegisters
from nvdma.pci.vfio_calls import (
    BUS_MASTER,
    CAPABILITY,
    CAPABILITY_IOVA_RANGES,
    COMMAND_OFFSET,
    CONFIG_REGION,
    DEVICE_GET_REGION_INFO,
    DEVICE_RESET,
    IOMMU_GET_INFO,
    IOMMU_INFO,
    IOMMU_INFO_HAS_CAPS,
    IOMMU_MAP_DMA,
    IOMMU_UNMAP_DMA,
    MAP_DMA,
    MEMORY_SPACE,
    READ_WRITE,
    REGION_CAN_MMAP,
    REGION_INFO,
    UNMAP_DMA,
    VfioError,
    call,
)


class Container:
    """The memory a function may reach: an address space of the IOMMU."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._space: IovaSpace | None = None

    def map(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins the memory at virtual `address` and shows it to the device; `stack` takes it away again.

        The unmapping must come after the device was quiesced: push it before whatever starts the device.
        """
        own = view[:]
        stack.callback(own.release)
        return DmaMemory(own, address, self.map_pages(address, view.nbytes, stack))

    def map_pages(self, address: int, nbytes: int, stack: ExitStack) -> Contiguous:
        """Maps `nbytes` of whatever lies at `address`, as `map` does: also of a BAR that is mapped there."""
        if self._space is None:
            self._space = IovaSpace(self.iova_ranges())
        iova = self._space.take(nbytes)
        try:
            fcntl.ioctl(self.fd, IOMMU_MAP_DMA, MAP_DMA.pack(MAP_DMA.size, READ_WRITE, address, iova, nbytes))
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise not_pinned(nbytes, error) from error
            raise VfioError(f"mapping {nbytes} bytes for the device failed: {error.strerror}") from error
        stack.callback(self._unmap, iova, nbytes)
        return Contiguous(iova)

    def iova_ranges(self) -> list[IovaRange]:
        """The addresses that the IOMMU can translate and nothing else has (interrupts, firmware)."""
        answer = bytearray(IOMMU_INFO.size)
        IOMMU_INFO.pack_into(answer, 0, len(answer), 0, 0, 0, 0)
        call(self.fd, IOMMU_GET_INFO, answer, "asking for the IOMMU's facts")
        (size,) = struct.unpack_from("=I", answer)
        answer = bytearray(size)
        struct.pack_into("=I", answer, 0, size)
        call(self.fd, IOMMU_GET_INFO, answer, "asking for the IOMMU's facts")
        return parse_iova_ranges(bytes(answer))

    def _unmap(self, iova: int, nbytes: int) -> None:
        argument = UNMAP_DMA.pack(UNMAP_DMA.size, 0, iova, nbytes)
        call(self.fd, IOMMU_UNMAP_DMA, argument, f"unmapping {nbytes} bytes at {iova:#x}")


def parse_iova_ranges(info: bytes) -> list[IovaRange]:
    """The ranges in a struct vfio_iommu_type1_info and the capabilities behind it. Raises VfioError without any."""
    _, flags, _, at, _ = IOMMU_INFO.unpack_from(info)
    while flags & IOMMU_INFO_HAS_CAPS and at:
        kind, _, following = CAPABILITY.unpack_from(info, at)
        if kind == CAPABILITY_IOVA_RANGES:
            (count,) = struct.unpack_from("=I", info, at + CAPABILITY.size)
            pairs = struct.iter_unpack("=QQ", info[at + CAPABILITY.size + 8 :][: 16 * count])
            return [IovaRange(first, last) for first, last in pairs]
        at = following
    raise VfioError("the kernel does not say which addresses its IOMMU translates", hint="use Linux 5.15 or later")


def not_pinned(nbytes: int, error: OSError) -> ArenaExhausted:
    """The kernel would not pin `nbytes` for this process; the hint has its limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "no limit" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
    return ArenaExhausted(f"pinning {nbytes} bytes for the device failed: {error.strerror}",
                          hint=f"raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd), now {allowed} for this process")


@dataclass(frozen=True, slots=True)
class Region:
    """A BAR or the configuration space: where it lies in the device's descriptor, and whether it can be mapped."""

    nbytes: int
    offset: int
    mappable: bool


class Device:
    """A function that was opened through VFIO."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def region(self, index: int) -> Region:
        """BAR `index`, or CONFIG_REGION."""
        answer = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        call(self.fd, DEVICE_GET_REGION_INFO, answer, f"asking for region {index}")
        _, flags, _, _, size, offset = REGION_INFO.unpack(answer)
        return Region(size, offset, bool(flags & REGION_CAN_MMAP))

    def map_bar(self, index: int, stack: ExitStack) -> MappedRegisters:
        """The BAR's registers. `stack` unmaps them, without which the function could not be unbound."""
        region = self.region(index)
        if not region.mappable or not region.nbytes:
            raise VfioError(f"BAR {index} cannot be mapped", hint="is this function an NVMe controller?")
        mapping = mmap.mmap(self.fd, region.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE,
                            offset=region.offset)
        stack.callback(mapping.close)
        return MappedRegisters(ctypes.addressof(ctypes.c_char.from_buffer(mapping)), region.nbytes)

    def enable_bus_master(self, stack: ExitStack) -> None:
        """Lets the function read and write memory; vfio-pci leaves that off. `stack` forbids it again."""
        self._set_command(BUS_MASTER | MEMORY_SPACE, 0)
        stack.callback(self._set_command, 0, BUS_MASTER)

    def reset(self) -> None:
        """A function-level reset, whatever state the device is in."""
        call(self.fd, DEVICE_RESET, 0, "resetting the function")

    def _set_command(self, bits: int, cleared: int) -> None:
        at = self.region(CONFIG_REGION).offset + COMMAND_OFFSET
        (command,) = struct.unpack("<H", os.pread(self.fd, 2, at))
        os.pwrite(self.fd, struct.pack("<H", command & ~cleared | bits), at)
