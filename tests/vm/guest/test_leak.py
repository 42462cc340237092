"""Does memory that a drive may still write to stay nobody else's? Drives whose registers are out of reach, or that no
reset stops (kmod/lab/labstuck.c).

What is leaked is so until the machine restarts, the module with it: this file is the last thing that its guest does.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.kmod_calls import Caps, ModuleError
from nvdma.pci.kmod_open import open_node
from nvdma.types import Read, Source
from vm.guest import labmodules
from vm.guest.machine import DEVICES, block_device, command_register, give_back, hand_over

MIB = 1 << 20
PAGE = 4096
SECONDS = 60.0
# The command register (PCI Local Bus Specification 3.0, section 6.2.2), the upper half of a BAR 0 of 64 bits.
COMMAND, MEMORY_SPACE, BUS_MASTER, UPPER_BAR = 4, 1 << 1, 1 << 2, 0x14
# NVM Express Base Specification 2.0, section 3.1.3: CAP, CC, CSTS.
CAP, CC, CSTS = 0x00, 0x14, 0x1C

pytestmark = pytest.mark.skipif(labmodules.missing(), reason="NOT TESTED: drives that do not stop, no kernel headers")


@pytest.fixture(scope="module", autouse=True)
def module() -> None:
    subprocess.run(["insmod", labmodules.NVSTREAM], check=True)


@pytest.fixture
def bound(drive: PciAddress) -> PciAddress:
    hand_over(drive, "nvstream")
    return drive


def pinned_pages() -> int:
    """Of the whole machine, by the kernel's count."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])


def configure(address: PciAddress, offset: int, value: int, nbytes: int) -> None:
    """Writes the configuration space of a function."""
    with (DEVICES / str(address) / "config").open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(value.to_bytes(nbytes, "little"))


def switch_memory_off(address: PciAddress) -> None:
    configure(address, COMMAND, command_register(address) & ~MEMORY_SPACE, 2)


def move_registers(address: PciAddress) -> None:
    configure(address, UPPER_BAR, 0x7F, 4)


@contextmanager
def running(address: PciAddress) -> Iterator[tuple[KmodAccess, NvmeBackend, Arena]]:
    """An enabled drive that may write into an arena; all is undone by closing the module's file alone."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(4 * MIB))
        access = KmodAccess(open_node(address, stack))
        found = NvmeBackend("nvme_host", [Drive(access, str(address), 8)], [OnDrive(0, 1, 0)],
                            [Source(-1, "lab", 4 * MIB)], arena)
        found.open()
        yield access, found, arena


def read(found: NvmeBackend) -> None:
    found.submit([Read(tag, 0, tag * MIB // 2, MIB // 2, tag * MIB // 2) for tag in range(8)])
    while found.in_flight:
        found.wait(SECONDS)


@pytest.mark.parametrize("hide", [switch_memory_off, move_registers])
def test_a_drive_whose_registers_are_out_of_reach_is_stopped_all_the_same(
        bound: PciAddress, hide: Callable[[PciAddress], None]) -> None:
    """Registers that do not answer are not taken for a drive that is gone: nothing is unmapped before it stops."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(MIB))
        access = KmodAccess(open_node(bound, stack))
        pinned = ExitStack()
        stack.callback(access.map_memory(arena.view, arena.address, pinned).view.release)
        registers = access.map_registers(stack)
        access.enable_bus_master(stack)
        registers.write32(CC, 6 << 16 | 4 << 20 | 1)
        hide(bound)
        # All ones from hardware, zeros from QEMU.
        assert registers.read64(CAP) in (0, 2**64 - 1)
        with pytest.raises(ModuleError, match="busy"):
            pinned.close()
        access.reset()
        assert not registers.read32(CC) & 1 and not registers.read32(CSTS) & 1
        assert command_register(bound) & (MEMORY_SPACE | BUS_MASTER) == MEMORY_SPACE
    with ExitStack() as stack:
        caps = KmodAccess(open_node(bound, stack)).caps()
        assert (caps.pinned_bytes, caps.mappings, caps.leaked) == (0, 0, 0)


def caps_of(address: PciAddress) -> Caps:
    with ExitStack() as stack:
        return KmodAccess(open_node(address, stack)).caps()


@contextmanager
def owner(address: PciAddress) -> Iterator[Caps]:
    """Another process that drives the function; it is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with running(address) as (access, found, _):
                read(found)
                caps = access.caps()
                os.write(writing, f"{caps.pinned_bytes} {caps.mappings}".encode())
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    pinned, mappings = (int(word) for word in os.read(reading, 100).split())
    os.close(reading)
    yield Caps(False, 0, pinned, 0, mappings, 0)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_memory_of_a_drive_that_was_pulled_out_is_given_back(bound: PciAddress) -> None:
    before = pinned_pages()
    with ExitStack() as stack:
        with owner(bound) as held:
            assert pinned_pages() - before == held.pinned_bytes // PAGE
            stack.enter_context(labmodules.loaded(labmodules.LABSTUCK, f"function={bound}", "silent=1"))
        assert pinned_pages() == before and caps_of(bound).leaked == 0


def test_memory_of_a_drive_that_nothing_stops_stays_pinned(bound: PciAddress) -> None:
    other = controllers_but(bound)
    before = pinned_pages()
    with ExitStack() as stack:
        with owner(bound) as held:
            stack.enter_context(labmodules.loaded(labmodules.LABSTUCK, f"function={bound}"))
        assert held.pinned_bytes > 4 * MIB
        assert pinned_pages() - before == held.pinned_bytes // PAGE
        caps = caps_of(bound)
        assert (caps.leaked, caps.mappings, caps.pinned_bytes) == (held.mappings, 0, 0)
        log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
        assert f"cannot be stopped: {held.mappings} mappings, {held.pinned_bytes} bytes of memory" in log
        # Another drive is served meanwhile.
        content = block_device(other).read_bytes()[: 4 * MIB]
        hand_over(other, "nvstream")
        stack.callback(give_back, other)
        with running(other) as (_, found, arena):
            read(found)
            assert bytes(arena.view) == content
            found.close()
    check_that_it_ran_on(bound, held)
    assert subprocess.run(["rmmod", "nvstream"], capture_output=True, check=False).returncode
    # Its next owner finds a drive; what was leaked stays so.
    assert pinned_pages() - before == held.pinned_bytes // PAGE


def controllers_but(address: PciAddress) -> PciAddress:
    """The other drive. The kernel's driver knows it alone by now."""
    (found,) = (PciAddress.parse(path.name) for path in (DEVICES.parent / "drivers/nvme").glob("0000:*")
                if path.name != str(address))
    return found


def check_that_it_ran_on(address: PciAddress, held: Caps) -> None:
    """Its registers are there again: it was enabled all the time, and stops now."""
    with ExitStack() as stack:
        access = KmodAccess(open_node(address, stack))
        registers = access.map_registers(stack)
        assert registers.read32(CC) & 1 and registers.read32(CSTS) & 1
        assert command_register(address) & BUS_MASTER
        access.reset()
        assert not registers.read32(CSTS) & 1 and not command_register(address) & BUS_MASTER
        assert access.caps().leaked == held.mappings
