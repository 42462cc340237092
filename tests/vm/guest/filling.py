"""How do a drive's first bytes get into the BAR that stands in for a GPU's? The host looks for them afterwards."""

from __future__ import annotations

from contextlib import ExitStack

from nvdma.arena import Arena
from nvdma.backends.nvme import Destination, NvmeBackend, OnDrive
from nvdma.nvme.drive import Drive
from nvdma.pci.access import Access
from nvdma.pci.address import PciAddress
from nvdma.pci.window import Window
from nvdma.types import Read, Source
from vm.guest.machine import BAR_OWNER
from vm.lab import MIB

# What test_guests.py finds in the memory behind the BAR: the drive's first bytes, from this offset on.
WITNESSED = Window(BAR_OWNER, 2, 8 * MIB, 32 * MIB)
SECONDS = 60.0


def fill(access: Access, drive: PciAddress, target: Destination) -> None:
    """Reads as many bytes as WITNESSED has from the drive to `target`, in blocks whose last comes first."""
    with ExitStack() as stack:
        # Says how large the target is; no byte of it is used.
        arena = stack.enter_context(Arena(WITNESSED.nbytes))
        found = NvmeBackend("nvme_vram", [Drive(access, str(drive), 16)], [OnDrive(0, 1, 0)],
                            [Source(-1, "lab", WITNESSED.nbytes)], arena, target=target)
        found.open()
        stack.callback(found.close)
        block = found.facts.max_read
        reads = [Read(tag, 0, tag * block, block, tag * block) for tag in range(WITNESSED.nbytes // block)]
        while reads or found.in_flight:
            count = min(len(reads), found.facts.depth - found.in_flight)
            found.submit([reads.pop() for _ in range(count)])
            found.wait(SECONDS)
        assert bytes(arena.view) == bytes(arena.nbytes)
