"""What does a driver need of a function, whichever way the kernel lets us have it?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from nvdma.pci.dma import BusAddresses, DmaMemory
from nvdma.pci.grants import BY_IOMMUFD, BY_MODULE, descriptor_count
from nvdma.pci.iommufd import IommufdAccess
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.mmio import Registers
from nvdma.pci.vfio import Container, Device
from nvdma.pci.window import Window, map_window


class Access(Protocol):
    """A function that is ours. What `stack` gets must be undone in reverse: memory is unmapped last."""

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins memory at virtual `address` and lets the function reach it."""

    def map_registers(self, stack: ExitStack) -> Registers:
        """The registers in BAR 0."""

    def enable_bus_master(self, stack: ExitStack) -> None:
        """Lets the function read and write memory."""

    def reset(self) -> None:
        """Stops the function, whatever state it is in: no read or write of memory follows."""


@dataclass(frozen=True, slots=True)
class VfioAccess:
    """A function through VFIO: the two descriptors that `nvdma.pci.vfio_open` opened, perhaps in another process."""

    container: Container
    device: Device

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins memory at virtual `address` and maps it in the container. Raises ArenaExhausted and VfioError."""
        return self.container.map(view, address, stack)

    def map_window(self, window: Window, fd: int, stack: ExitStack) -> BusAddresses:
        """The function's addresses of a peer's memory; `fd` is from `nvdma.pci.window.open_bar`.

        Not every machine carries writes from one function to another: compare what arrives before it is relied upon.
        Raises WindowRefused, and what `map_memory` raises.
        """
        return self.container.map_pages(map_window(window, fd, stack), window.nbytes, stack)

    def map_registers(self, stack: ExitStack) -> Registers:
        """The registers in BAR 0, mapped until `stack` is closed. Raises VfioError."""
        return self.device.map_bar(0, stack)

    def enable_bus_master(self, stack: ExitStack) -> None:
        """Lets the function read and write memory until `stack` is closed. Raises VfioError."""
        self.device.enable_bus_master(stack)

    def reset(self) -> None:
        """Resets the function. Raises VfioError."""
        self.device.reset()


def access_of(grant: str, fds: Sequence[int]) -> Access:
    """The function behind descriptors that were opened, perhaps in another process. Raises ValueError and VfioError."""
    if len(fds) != descriptor_count(grant):
        raise ValueError(f"{len(fds)} descriptors are not the {descriptor_count(grant)} of {grant}")
    if grant == BY_MODULE:
        return KmodAccess(fds[0])
    if grant == BY_IOMMUFD:
        return IommufdAccess.attach(fds[0], fds[1])
    return VfioAccess(Container(fds[0]), Device(fds[1]))
