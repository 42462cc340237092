"""Does a drive write into another function's BAR, without the processor touching a byte? Through our module."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import BusAddresses
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.kmod_open import open_node
from nvdma.pci.window import Window
from vm.guest.filling import WITNESSED, fill
from vm.guest.machine import BAR_OWNER, answer_to_bars, hand_over
from vm.lab import LAB, MIB

MODULE = LAB / "nvstream/nvstream.ko"

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="NOT TESTED: the module nvstream, no kernel headers")


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    subprocess.run(["insmod", MODULE, "peers=1af4:1110"], check=True)
    answer_to_bars(BAR_OWNER)
    yield
    subprocess.run(["rmmod", "nvstream"], check=True)


def test_the_drive_fills_the_window_and_nothing_beside_it(drive: PciAddress) -> None:
    hand_over(drive, "nvstream")
    with ExitStack() as stack:
        access = KmodAccess(open_node(drive, stack))

        def window(_: Drive, stack: ExitStack) -> BusAddresses:
            return access.map_window(WITNESSED, stack)

        fill(access, drive, window)


def test_a_killed_or_closed_owner_leaves_no_window(drive: PciAddress) -> None:
    hand_over(drive, "nvstream")
    with ExitStack() as stack:
        access = KmodAccess(open_node(drive, stack))
        access.map_window(Window(BAR_OWNER, 2, 0, MIB), ExitStack())
    with ExitStack() as stack:
        assert KmodAccess(open_node(drive, stack)).caps().mappings == 0
