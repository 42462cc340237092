"""Does a drive write into another function's BAR through VFIO alone, for a process that has no privilege?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.nvme.drive import Drive
from nvdma.pci.access import VfioAccess
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import BusAddresses
from nvdma.pci.vfio import Container, Device
from nvdma.pci.vfio_open import open_function
from nvdma.pci.window import Window, WindowRefused, map_window, open_bar
from vm.guest.filling import WITNESSED, fill
from vm.guest.machine import BAR_OWNER, answer_to_bars, bar_bytes, hand_over, hold_no_more, without_privilege
from vm.lab import MIB


@pytest.fixture(autouse=True)
def answering() -> Iterator[None]:
    """The BAR's owner decodes its memory, and no driver has it, before and after."""
    answer_to_bars(BAR_OWNER)
    yield
    hold_no_more(BAR_OWNER)


def opened(drive: PciAddress, stack: ExitStack) -> VfioAccess:
    hand_over(drive, "vfio-pci")
    found = open_function(drive, stack)
    return VfioAccess(Container(found.container), Device(found.device))


def mappings_of_bars() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{BAR_OWNER}/resource" in line]


def test_the_drive_fills_the_window_and_nothing_beside_it(drive: PciAddress) -> None:
    """Root opens; a child of another user maps, reads and closes. The host looks for the bytes afterwards."""
    with ExitStack() as stack:
        access, bar = opened(drive, stack), open_bar(BAR_OWNER, 2, stack)
        without_privilege(lambda: fill_without_privilege(access, drive, bar))


def fill_without_privilege(access: VfioAccess, drive: PciAddress, bar: int) -> None:
    def window(_: Drive, stack: ExitStack) -> BusAddresses:
        return access.map_window(WITNESSED, bar, stack)

    fill(access, drive, window)
    assert not mappings_of_bars()


def test_a_window_is_taken_away_before_its_mapping(drive: PciAddress) -> None:
    """The addresses it had are free again: the kernel would refuse a second mapping in the same place."""
    with ExitStack() as stack:
        access, bar = opened(drive, stack), open_bar(BAR_OWNER, 2, stack)
        first = ExitStack()
        window = Window(BAR_OWNER, 2, 0, MIB)
        begin = access.map_window(window, bar, first).at(0)
        assert mappings_of_bars()
        first.close()
        assert not mappings_of_bars()
        space = VfioAccess(Container(access.container.fd), access.device)
        assert space.map_window(window, bar, stack).at(0) == begin


def test_what_lies_beyond_the_bar_is_refused(drive: PciAddress) -> None:
    size = bar_bytes(BAR_OWNER, 2)
    with ExitStack() as stack:
        access, bar = opened(drive, stack), open_bar(BAR_OWNER, 2, stack)
        with pytest.raises(WindowRefused, match=f"not inside its {size} bytes"):
            access.map_window(Window(BAR_OWNER, 2, size - MIB, 2 * MIB), bar, stack)
        assert access.map_window(Window(BAR_OWNER, 2, size - MIB, MIB), bar, stack).at(0)


def test_a_function_that_does_not_answer_is_refused() -> None:
    """A drive would be told that all went well."""
    answer_to_bars(BAR_OWNER, 0)
    with ExitStack() as stack, pytest.raises(WindowRefused, match="does not answer"):
        open_bar(BAR_OWNER, 2, stack)


def test_a_bar_that_its_driver_has_for_itself_is_refused_with_a_remedy() -> None:
    hand_over(BAR_OWNER, "vfio-pci")
    with ExitStack() as stack:
        device = Device(open_function(BAR_OWNER, stack).device)
        device.enable_bus_master(stack)  # and with it the memory space
        device.map_bar(2, stack)
        bar = open_bar(BAR_OWNER, 2, stack)
        with pytest.raises(WindowRefused, match="iomem=relaxed"):
            map_window(Window(BAR_OWNER, 2, 0, MIB), bar, stack)
