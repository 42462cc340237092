"""How does a process without privilege use a PCIe function that was opened for it through iommufd? (linux/iommufd.h)

Two descriptors are all it gets, already bound to each other (nvdma.pci.iommufd_open): the iommufd, whose address
spaces say which memory the device may reach, and the device's, which is the same as in nvdma.pci.vfio. The bound device
keeps the iommufd alive: in whatever order both are closed, and however the process ended, the kernel stops the function
before it lets go of a page (drivers/vfio/vfio_main.c, vfio_df_device_last_close).

Memory only: the kernel pins what is mapped here, and a BAR of another function (nvdma.pci.window) has no pages that it
could pin. A drive that is to write into one is opened through its group.
"""

from __future__ import annotations

import errno
import fcntl
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from nvdma.errors import ArenaExhausted
from nvdma.pci.dma import Contiguous, DmaMemory
from nvdma.pci.iommufd_calls import (
    ALLOCATION,
    ATTACHMENT,
    DEVICE_ATTACH_IOMMUFD_PT,
    IOAS_ALLOC,
    IOAS_MAP,
    IOAS_UNMAP,
    MAP,
    MAP_READABLE,
    MAP_WRITEABLE,
    UNMAP,
)
from nvdma.pci.mmio import Registers
from nvdma.pci.vfio import Device, not_pinned
from nvdma.pci.vfio_calls import VfioError, call


class AddressSpace:
    """The memory that functions may reach: address space `number` of the iommufd `fd`."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.number = number

    @classmethod
    def make(cls, fd: int) -> Self:
        """One that is empty; it ends with the iommufd. Raises VfioError."""
        answer = bytearray(ALLOCATION.pack(ALLOCATION.size, 0, 0))
        call(fd, IOAS_ALLOC, answer, "making an address space for the device")
        return cls(fd, ALLOCATION.unpack(answer)[2])

    def map(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins the memory at virtual `address` and shows it to the device; `stack` takes it away again.

        The unmapping must come after the device was quiesced: push it before whatever starts the device.
        Raises ArenaExhausted and VfioError.
        """
        own = view[:]
        stack.callback(own.release)
        nbytes = view.nbytes
        # The kernel chooses among what the IOMMU can translate and the attached functions leave free: never 0, and
        # aligned as `address` is up to 2 MiB, so that large entries serve large pages (iopt_alloc_iova in
        # drivers/iommu/iommufd/io_pagetable.c). It cannot choose well before a function is attached.
        asked = bytearray(MAP.pack(MAP.size, MAP_READABLE | MAP_WRITEABLE, self.number, 0, address, nbytes, 0))
        try:
            fcntl.ioctl(self.fd, IOAS_MAP, asked)
        except OSError as error:
            raise _not_mapped(nbytes, error) from error
        iova = MAP.unpack(asked)[6]
        stack.callback(self._unmap, iova, nbytes)
        return DmaMemory(own, address, Contiguous(iova))

    def _unmap(self, iova: int, nbytes: int) -> None:
        argument = UNMAP.pack(UNMAP.size, self.number, iova, nbytes)
        call(self.fd, IOAS_UNMAP, argument, f"unmapping {nbytes} bytes at {iova:#x}")


def _not_mapped(nbytes: int, error: OSError) -> ArenaExhausted | VfioError:
    if error.errno == errno.ENOMEM:
        return not_pinned(nbytes, error)
    if error.errno == errno.ENOSPC:
        return ArenaExhausted(f"the IOMMU has no {nbytes} addresses in one piece left",
                              hint="lower the memory budget, or give the machine's IOMMU a wider address width")
    return VfioError(f"mapping {nbytes} bytes for the device failed: {error.strerror}")


@dataclass(frozen=True, slots=True)
class IommufdAccess:
    """A function through iommufd: its address space, and the device's descriptor."""

    space: AddressSpace
    device: Device

    @classmethod
    def attach(cls, iommufd: int, device: int) -> Self:
        """Takes the two descriptors that `nvdma.pci.iommufd_open` opened, perhaps in another process. Raises VfioError.

        The function gets an empty address space. It no longer reaches the one that it had before, nor what is mapped
        there.
        """
        space = AddressSpace.make(iommufd)
        argument = ATTACHMENT.pack(ATTACHMENT.size, 0, space.number)
        call(device, DEVICE_ATTACH_IOMMUFD_PT, argument, "giving the function its address space")
        return cls(space, Device(device))

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins memory at virtual `address` and maps it for the function. Raises ArenaExhausted and VfioError."""
        return self.space.map(view, address, stack)

    def map_registers(self, stack: ExitStack) -> Registers:
        """The registers in BAR 0, mapped until `stack` is closed. Raises VfioError."""
        return self.device.map_bar(0, stack)

    def enable_bus_master(self, stack: ExitStack) -> None:
        """Lets the function read and write memory until `stack` is closed. Raises VfioError."""
        self.device.enable_bus_master(stack)

    def reset(self) -> None:
        """Resets the function. Raises VfioError."""
        self.device.reset()
