"""How is a drive that we took opened, so that a process without privilege can drive it?

By its driver: VFIO where an IOMMU keeps the drive to memory that it was shown, our module where there is none. Of
VFIO's two interfaces the older one, containers, unless the kernel has iommufd alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from nvdma.errors import DmaError
from nvdma.pci.address import PciAddress
from nvdma.pci.grants import BY_IOMMUFD, BY_MODULE, BY_VFIO
from nvdma.pci.iommufd_open import has_iommufd, open_cdev
from nvdma.pci.kmod_open import open_node
from nvdma.pci.vfio_open import has_containers, open_function
from nvdma.pci.vfio_request import watch
from nvstreamd.errors import HardwareError
from nvstreamd.hardware.changes import NVSTREAM


@dataclass(frozen=True, slots=True)
class OpenedDrive:
    """A drive opened for a process: `grant` and descriptors, as `nvdma.pci.access.access_of` takes them.

    `wanted_back` is an eventfd(2) that becomes readable when the kernel wants the drive back and waits for it; None
    where it does not wait.
    """

    grant: str
    descriptors: tuple[int, ...]
    wanted_back: int | None = None


class HeldDrive(Protocol):
    """A drive that is ours until it is given back."""

    @property
    def serial(self) -> str:
        """Its serial number."""

    @property
    def address(self) -> str:
        """Where it is on the bus."""

    def open(self, passed: ExitStack, kept: ExitStack) -> OpenedDrive:
        """Opens it for one process.

        `passed` closes our copies of the descriptors, not those that were passed on; `kept` closes `wanted_back`.
        Raises HardwareError.
        """


@dataclass(frozen=True, slots=True)
class VfioDrive:
    """A drive that vfio-pci has."""

    serial: str
    address: str

    def open(self, passed: ExitStack, kept: ExitStack) -> OpenedDrive:
        """Opens the drive through a VFIO container, or through iommufd where the kernel has no containers.

        `passed` closes our copies of the descriptors, `kept` closes `wanted_back`. Raises HardwareError.
        """
        address = PciAddress.parse(self.address)
        with _named(self.serial):
            # A container also maps a peer's BAR, and every kernel that we know has it.
            if has_iommufd(address) and not has_containers():
                cdev = open_cdev(address, passed)
                return OpenedDrive(BY_IOMMUFD, (cdev.iommufd, cdev.device), watch(cdev.device, kept))
            opened = open_function(address, passed)
            return OpenedDrive(BY_VFIO, (opened.container, opened.device), watch(opened.device, kept))


@dataclass(frozen=True, slots=True)
class ModuleDrive:
    """A drive that our module has. When the kernel wants it back the module stops it and does not wait."""

    serial: str
    address: str

    def open(self, passed: ExitStack, kept: ExitStack) -> OpenedDrive:
        """Opens the module's node, which `passed` closes; nothing is kept.

        Raises HardwareError, also for a module of another release.
        """
        with _named(self.serial):
            return OpenedDrive(BY_MODULE, (open_node(PciAddress.parse(self.address), passed),))


def held_drive(serial: str, address: str, driver: str) -> HeldDrive:
    """A claimed drive; `driver` is the one that it was given to."""
    return ModuleDrive(serial, address) if driver == NVSTREAM else VfioDrive(serial, address)


@contextmanager
def _named(serial: str) -> Iterator[None]:
    try:
        yield
    except DmaError as error:
        raise HardwareError(f"drive {serial}: {error.what}", error.hint) from error
