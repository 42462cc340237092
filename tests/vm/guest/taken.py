"""How does a test in the guest take a drive from the kernel and read it through our own queues?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.nvme.drive import Drive
from nvdma.pci.access import Access, VfioAccess
from nvdma.pci.address import PciAddress
from nvdma.pci.vfio import Container, Device
from nvdma.pci.vfio_open import open_function
from nvdma.types import Source
from vm.guest.machine import first_bytes, give_back, hand_over

DEPTH = 32
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A drive that the kernel has given up, and what the kernel read from it before."""

    address: PciAddress
    content: bytes


@contextmanager
def taken_from_the_kernel(address: PciAddress, nbytes: int) -> Iterator[Taken]:
    """A drive in VFIO's hands, with its first bytes; it is given back."""
    content = first_bytes(address, nbytes)
    hand_over(address, "vfio-pci")
    try:
        yield Taken(address, content)
    finally:
        give_back(address)


def access(address: PciAddress, stack: ExitStack) -> Access:
    """The function, as an engine gets it."""
    opened = open_function(address, stack)
    return VfioAccess(Container(opened.container), Device(opened.device))


@contextmanager
def backend(taken: Taken, arena: Arena, offset: int = 0, size: int | None = None) -> Iterator[NvmeBackend]:
    """An open backend over the drive's first bytes, or others."""
    with ExitStack() as stack:
        drive = Drive(access(taken.address, stack), str(taken.address), DEPTH)
        source = Source(-1, "lab", len(taken.content) if size is None else size)
        found = NvmeBackend("nvme_host", [drive], [OnDrive(0, 1, offset)], [source], arena)
        found.open()
        stack.callback(found.close)
        yield found


def drain(found: NvmeBackend) -> dict[int, int]:
    """Waits for all that is under way: bytes by tag."""
    done: dict[int, int] = {}
    while found.in_flight:
        done |= {completion.tag: completion.nbytes for completion in found.wait(SECONDS)}
    return done
