"""Which calls does VFIO understand? (linux/vfio.h, type1) Imports nothing that a process of root should not have."""

from __future__ import annotations

import fcntl
import struct

from nvdma.errors import DmaError

# _IO(';', 100 + n): ioctls without a size in their number.
BASE = ord(";") << 8 | 100
GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = BASE, BASE + 1, BASE + 2
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = BASE + 3, BASE + 4, BASE + 6
DEVICE_GET_REGION_INFO, DEVICE_SET_IRQS, DEVICE_RESET = BASE + 8, BASE + 10, BASE + 11
IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA = BASE + 12, BASE + 13, BASE + 14

REGION_INFO = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
REGION_CAN_MMAP = 1 << 2
CONFIG_REGION = 7
IRQ_SET = struct.Struct("=IIIIIi")  # argsz, flags, index, start, count, one descriptor
IRQ_SET_EVENTFD, IRQ_SET_TRIGGER = 1 << 2, 1 << 5
REQUEST_IRQ = 4  # VFIO_PCI_REQ_IRQ_INDEX
IOMMU_INFO = struct.Struct("=IIQII")  # argsz, flags, iova_pgsizes, cap_offset, pad
IOMMU_INFO_HAS_CAPS = 1 << 1
CAPABILITY = struct.Struct("=HHI")  # id, version, next
CAPABILITY_IOVA_RANGES = 1
MAP_DMA = struct.Struct("=IIQQQ")  # argsz, flags, vaddr, iova, size
UNMAP_DMA = struct.Struct("=IIQQ")  # argsz, flags, iova, size
READ_WRITE = 3

# PCI Local Bus Specification 3.0, section 6.2.2: the command register and its bits.
COMMAND_OFFSET = 4
MEMORY_SPACE, BUS_MASTER = 1 << 1, 1 << 2


class VfioError(DmaError):
    """The kernel refused a call of VFIO."""

    hint = "look for `vfio` in `dmesg`; is the function still bound to vfio-pci?"


def call(fd: int, number: int, argument: bytes | bytearray | int, what: str) -> int:
    """An ioctl(2); what the kernel answers is in `argument` when that is a bytearray. Raises VfioError with `what`."""
    # From immutable bytes fcntl would make its result, and the ioctl's own would be lost.
    given = bytearray(argument) if isinstance(argument, bytes) else argument
    try:
        return int(fcntl.ioctl(fd, number, given))
    except OSError as error:
        raise VfioError(f"{what} failed: {error.strerror}") from error
