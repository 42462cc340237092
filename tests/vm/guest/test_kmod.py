"""Does the module stop a drive before it lets go of a page, whatever becomes of the process that drove it?"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.arena import Arena
from nvdma.pci.address import PciAddress
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.kmod_calls import ModuleError
from nvdma.pci.kmod_open import open_node
from nvdma.pci.window import Window
from vm.guest.machine import BAR_OWNER, DEVICES, bar_address, command_register, give_back, hand_over
from vm.lab import LAB

MIB = 1 << 20
BUS_MASTER = 1 << 2
MODULE = LAB / "nvstream/nvstream.ko"
# NVM Express Base Specification 2.0, section 3.1.3: CAP, CC, CSTS.
VERSION, CC, CSTS = 0x08, 0x14, 0x1C

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="NOT TESTED: the module nvstream, no kernel headers")


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    subprocess.run(["insmod", MODULE, "peers=1af4:1110"], check=True)
    yield
    subprocess.run(["rmmod", "nvstream"], check=True)


@pytest.fixture
def bound(drive: PciAddress) -> PciAddress:
    """Drive LAB0, bound to the module."""
    hand_over(drive, "nvstream")
    return drive


def test_memory_is_pinned_and_each_page_has_its_address(bound: PciAddress) -> None:
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(4 * MIB))
        access = KmodAccess(open_node(bound, stack))
        with ExitStack() as pinned:
            memory = access.map_memory(arena.view, arena.address, pinned)
            pages = memory.bus.pages(0, memory.nbytes).tolist()
            assert len(set(pages)) == 1024 and not any(page % 4096 for page in pages) and 0 not in pages
            assert access.caps().pinned_bytes == 4 * MIB and access.caps().mappings == 1
        assert access.caps().pinned_bytes == 0


def test_nothing_is_unmapped_while_the_controller_runs(bound: PciAddress) -> None:
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(MIB))
        access = KmodAccess(open_node(bound, stack))
        pinned = ExitStack()
        memory = access.map_memory(arena.view, arena.address, pinned)
        stack.callback(memory.view.release)
        registers = access.map_registers(stack)
        # Enabled without queues: QEMU's controller then reports a fatal status at most; CC.EN is set all the same.
        registers.write32(CC, 6 << 16 | 4 << 20 | 1)
        with pytest.raises(ModuleError, match="busy"):
            pinned.close()
        assert access.caps().mappings == 1
        access.reset()
        assert not registers.read32(CC) & 1 and not registers.read32(CSTS) & 1


def test_a_killed_process_leaves_a_stopped_function_and_no_pinned_page(bound: PciAddress) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with ExitStack() as stack:
                arena = stack.enter_context(Arena(8 * MIB))
                access = KmodAccess(open_node(bound, stack))
                access.map_memory(arena.view, arena.address, stack)
                access.enable_bus_master(stack)
                os.write(writing, b"!" if access.caps().pinned_bytes == 8 * MIB else b"?")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 1) == b"!" and command_register(bound) & BUS_MASTER
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not command_register(bound) & BUS_MASTER
    with ExitStack() as stack:
        caps = KmodAccess(open_node(bound, stack)).caps()
        assert (caps.pinned_bytes, caps.mappings, caps.leaked) == (0, 0, 0)


def test_a_function_that_is_unbound_under_its_owner_is_stopped_first(bound: PciAddress) -> None:
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(MIB))
        access = KmodAccess(open_node(bound, stack))
        access.map_memory(arena.view, arena.address, ExitStack()).view.release()
        give_back(bound)
        with pytest.raises(ModuleError, match="No such device"):
            access.caps()


def test_a_window_of_a_peer_has_the_addresses_of_its_bar(bound: PciAddress) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        window = access.map_window(Window(BAR_OWNER, 2, MIB, 2 * MIB), stack)
        pages = window.pages(0, 2 * MIB).tolist()
        assert len(pages) == 512 and pages == list(range(pages[0], pages[0] + 2 * MIB, 4096))
        if not access.caps().translated:
            assert pages[0] == bar_address(BAR_OWNER, 2) + MIB


@pytest.mark.parametrize(("window", "why"), [
    (Window(BAR_OWNER, 2, 0, 65 * MIB), "Invalid"),
    (Window(BAR_OWNER, 2, 64 * MIB, 4096), "Invalid"),
    (Window(BAR_OWNER, 2, 2**64 - 4096, 8192), "Invalid"),
    (Window(BAR_OWNER, 2, 100, 4096), "Invalid"),
    (Window(BAR_OWNER, 5, 0, 4096), "Invalid"),
    (Window(PciAddress(0, 0, 0, 0), 0, 0, 4096), "not permitted"),
    (Window(PciAddress(7, 1, 2, 3), 0, 0, 4096), "No such device"),
])
def test_no_window_beside_a_peers_bar_is_mapped(bound: PciAddress, window: Window, why: str) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with pytest.raises(ModuleError, match=why):
            access.map_window(window, stack)
        assert access.caps().mappings == 0


def test_registers_are_mapped_while_memory_is_pinned(bound: PciAddress) -> None:
    """mmap comes with the process's memory locked, which pinning locks too: a process cannot hang itself, and so us."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(4 * MIB))
        access = KmodAccess(open_node(bound, stack))

        def pin_often() -> None:
            for _ in range(100):
                with ExitStack() as pinned:
                    access.map_memory(arena.view, arena.address, pinned)

        with ThreadPoolExecutor(1) as pool:
            pinning = pool.submit(pin_often)
            while not pinning.done():
                with ExitStack() as mapped:
                    access.map_registers(mapped)
            pinning.result()


def test_a_function_is_opened_once_only_and_by_root_only(bound: PciAddress) -> None:
    with ExitStack() as stack:
        open_node(bound, stack)
        with pytest.raises(ModuleError, match="busy"):
            open_node(bound, stack)
    assert (Path("/dev/nvstream") / str(bound)).stat().st_mode & 0o777 == 0o600


def test_memory_that_is_not_there_is_refused(bound: PciAddress) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with memoryview(bytearray(4096)) as view, pytest.raises(ModuleError, match="Bad address"):
            access.map_memory(view, 1 << 46, stack)
        assert access.caps().pinned_bytes == 0


def test_only_drives_are_bound() -> None:
    """driver_override makes the module the driver of anything; it looks at the class."""
    (DEVICES / str(BAR_OWNER) / "driver_override").write_text("nvstream\n")
    Path("/sys/bus/pci/drivers_probe").write_text(str(BAR_OWNER))
    assert not (DEVICES / str(BAR_OWNER) / "driver").exists()
    (DEVICES / str(BAR_OWNER) / "driver_override").write_text("\n")
