"""Does a function that was opened through VFIO do what its owner says, and nothing after its owner is gone?"""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from nvdma.arena import Arena
from nvdma.errors import ArenaExhausted
from nvdma.pci.address import PciAddress
from nvdma.pci.vfio import Container, Device
from nvdma.pci.vfio_calls import BUS_MASTER, VfioError
from nvdma.pci.vfio_open import open_function
from vm.guest.machine import command_register, hand_over

MIB = 1 << 20
# NVM Express Base Specification 2.0, section 3.1.3.2: the version register.
VERSION = 8


def test_registers_are_read_and_the_bus_is_mastered_only_while_asked(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        device = Device(open_function(drive, stack).device)
        assert not command_register(drive) & BUS_MASTER
        with ExitStack() as mastering:
            device.enable_bus_master(mastering)
            assert command_register(drive) & BUS_MASTER
            assert device.map_bar(0, mastering).read32(VERSION) == 0x10400
        assert not command_register(drive) & BUS_MASTER


def test_the_kernel_stops_a_device_whose_owner_closes_without_a_word(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        device = Device(open_function(drive, stack).device)
        device.enable_bus_master(ExitStack())
    assert not command_register(drive) & BUS_MASTER


def test_memory_is_mapped_where_the_iommu_can_translate(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(8 * MIB))
        container = Container(open_function(drive, stack).container)
        first = container.map(arena.view[: 4 * MIB], arena.address, stack)
        second = container.map(arena.view[4 * MIB :], arena.address + 4 * MIB, stack)
        ranges = container.iova_ranges()
        for memory in (first, second):
            begin, end = memory.bus.at(0), memory.bus.at(memory.nbytes - 1)
            assert any(found.first <= begin and end <= found.last for found in ranges)
        assert second.bus.at(0) >= first.bus.at(0) + first.nbytes


def pinned_without_privilege(container: Container) -> str:
    """What an engine of an ordinary user is told when it maps more than it may lock. Runs in a child."""
    os.setuid(65534)
    with Arena(64 * MIB) as arena:
        try:
            container.map(arena.view, arena.address, ExitStack())
        except ArenaExhausted as error:
            return str(error)
    return "it was mapped"


def test_memory_that_may_not_be_pinned_is_refused_with_the_limit(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        container = Container(open_function(drive, stack).container)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writing, pinned_without_privilege(container).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert b"RLIMIT_MEMLOCK" in os.read(reading, 4096)


def test_a_function_is_opened_once_only(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        open_function(drive, stack)
        with pytest.raises(VfioError, match="busy"):
            open_function(drive, stack)


def test_a_function_without_the_right_driver_is_not_opened(drive: PciAddress) -> None:
    with ExitStack() as stack, pytest.raises(VfioError, match="held by nvme"):
        open_function(drive, stack)
