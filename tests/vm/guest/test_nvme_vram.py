"""Does a drive write into another function's BAR, without the processor touching a byte? The host looks afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, Place
from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import BusAddresses
from nvdma.pci.kmod import KmodAccess, Window, open_node
from nvdma.types import Read, Source
from vm.guest.machine import BAR_OWNER, first_bytes, hand_over
from vm.lab import LAB

MIB = 1 << 20
MODULE = LAB / "nvstream/nvstream.ko"
# What test_guests.py finds in the memory behind the BAR: the drive's first bytes, from this offset on.
WITNESSED_OFFSET, WITNESSED_BYTES = 8 * MIB, 32 * MIB

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="NOT TESTED: the module nvstream, no kernel headers")


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    subprocess.run(["insmod", MODULE, "peers=1af4:1110"], check=True)
    (Path("/sys/bus/pci/devices") / str(BAR_OWNER) / "enable").write_text("1")
    yield
    subprocess.run(["rmmod", "nvstream"], check=True)


def test_the_drive_fills_the_window_and_nothing_beside_it(drive: PciAddress) -> None:
    content = first_bytes(drive, WITNESSED_BYTES)
    hand_over(drive, "nvstream")
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(WITNESSED_BYTES))  # says how large the target is; no byte of it is used
        access = KmodAccess(open_node(drive, stack))

        def window(_: Drive, stack: ExitStack) -> BusAddresses:
            return access.map_window(Window(BAR_OWNER, 2, WITNESSED_OFFSET, WITNESSED_BYTES), stack)

        found = NvmeBackend("nvme_vram", [Drive(access, str(drive), 16)], [Place(0, 1, 0)],
                            [Source(-1, "lab", len(content))], arena, target=window)
        found.open()
        stack.callback(found.close)
        block = found.facts.max_read
        reads = [Read(tag, 0, tag * block, block, tag * block) for tag in range(WITNESSED_BYTES // block)]
        while reads or found.in_flight:
            count = min(len(reads), found.facts.depth - found.in_flight)
            found.submit([reads.pop() for _ in range(count)])
            found.wait(60)
        assert bytes(arena.view) == bytes(arena.nbytes)


def test_a_killed_or_closed_owner_leaves_no_window(drive: PciAddress) -> None:
    hand_over(drive, "nvstream")
    with ExitStack() as stack:
        access = KmodAccess(open_node(drive, stack))
        access.map_window(Window(BAR_OWNER, 2, 0, MIB), ExitStack())
    with ExitStack() as stack:
        assert KmodAccess(open_node(drive, stack)).caps().mappings == 0
