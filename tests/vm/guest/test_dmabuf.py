"""Does a drive read into memory that another driver exports, and does that memory stay as long as the drive reaches it?

kmod/lab/labbar.c stands for the driver of a GPU; it counts what importers hold.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import BusAddresses
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.kmod_calls import ModuleError
from nvdma.pci.kmod_open import open_node
from nvdma.pci.mmio import wait_until
from nvdma.types import Read, Source
from vm.guest import labmodules
from vm.guest.labmodules import counts, export
from vm.guest.machine import BAR_OWNER, DEVICES, block_device, command_register, controllers, give_back, hand_over

MIB = 1 << 20
PAGE = 4096
SECONDS = 60.0
BUS_MASTER = 1 << 2
CANARY = 0xA5
# Begins and ends in the middle of the exporter's pieces of 3 MiB.
OFFSET, PART = 5 * MIB + 3 * PAGE, 10 * MIB

pytestmark = pytest.mark.skipif(labmodules.missing(), reason="NOT TESTED: dma-bufs, no kernel headers for the modules")


@pytest.fixture(scope="module", autouse=True)
def exporter() -> Iterator[None]:
    with labmodules.loaded(labmodules.NVSTREAM), labmodules.loaded(labmodules.LABBAR):
        yield


@pytest.fixture
def bar() -> Iterator[mmap.mmap]:
    """The memory behind the BAR, as the processor sees it: canaries all over."""
    with (DEVICES / str(BAR_OWNER) / "resource2").open("r+b") as file, mmap.mmap(file.fileno(), 0) as found:
        found[:] = bytes([CANARY]) * len(found)
        yield found


@pytest.fixture(scope="module")
def content() -> bytes:
    """The first bytes of drive LAB0, as the kernel's driver reads them."""
    address = controllers()["LAB0"]
    namespaces = DEVICES / str(address) / "nvme"
    wait_until(lambda: bool(list(namespaces.glob("nvme*/nvme*n1"))), SECONDS, f"a namespace in {namespaces}")
    with block_device(address).open("rb") as file:
        return file.read(PART)


@pytest.fixture
def bound(content: bytes, drive: PciAddress) -> PciAddress:
    """Drive LAB0, bound to the module."""
    hand_over(drive, "nvstream")
    return drive


@contextmanager
def backend(access: KmodAccess, name: str, part: BusAddresses) -> Iterator[NvmeBackend]:
    """Reads of LAB0's first bytes into the exported part; no byte of the arena, which says how large it is, is used."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(PART))
        found = NvmeBackend("nvme_vram", [Drive(access, name, 16)], [OnDrive(0, 1, 0)], [Source(-1, "lab", PART)],
                            arena, target=lambda drive, stack: part)
        found.open()
        stack.callback(found.close)
        yield found
        assert bytes(arena.view) == bytes(arena.nbytes)


def pieces(nbytes: int) -> list[Read]:
    """All of the part, in reads of `nbytes`."""
    return [Read(tag, 0, begin, min(nbytes, PART - begin), begin) for tag, begin in enumerate(range(0, PART, nbytes))]


def read_all(found: NvmeBackend, reads: Sequence[Read]) -> None:
    left = list(reads)
    while left or found.in_flight:
        count = min(len(left), found.facts.depth - found.in_flight)
        found.submit([left.pop() for _ in range(count)])
        found.wait(SECONDS)


def check(bar: mmap.mmap, content: bytes) -> None:
    """The drive's bytes are in the part, and nothing is beside it."""
    assert len(content) == PART and content.strip(b"\0"), "the drive is empty: nothing could be told from it"
    assert bar[OFFSET : OFFSET + PART] == content
    assert bar[:OFFSET] == bytes([CANARY]) * OFFSET
    assert bar[OFFSET + PART :] == bytes([CANARY]) * (len(bar) - OFFSET - PART)


@pytest.mark.parametrize("nbytes", [PAGE, 5 * PAGE, MIB])
def test_the_drive_fills_the_dmabuf_and_nothing_beside_it(
        bound: PciAddress, bar: mmap.mmap, content: bytes, nbytes: int) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        part = access.map_dmabuf(export(OFFSET, PART, stack), stack)
        assert len(part.addresses) == PART // PAGE and access.caps().mapped_bytes == PART
        read_all(stack.enter_context(backend(access, str(bound), part)), pieces(nbytes))
    check(bar, content)
    assert counts() == (0, 0, 0)


def test_it_outlives_its_descriptor_until_it_is_unmapped(bound: PciAddress, bar: mmap.mmap, content: bytes) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with ExitStack() as exported, ExitStack() as mapped:
            part = access.map_dmabuf(export(OFFSET, PART, exported), mapped)
            exported.close()
            with backend(access, str(bound), part) as found:
                read_all(found, pieces(MIB))
                # Not while the controller could still be told to write there.
                with pytest.raises(ModuleError, match="busy"):
                    mapped.pop_all().close()
            exports, pins, maps = counts()
            assert (exports, maps) == (1, 1) and pins >= 1
            assert access.caps().mappings == 1
        check(bar, content)
    assert counts() == (0, 0, 0)


def test_a_mapping_that_its_owner_gives_back_is_gone_at_once(bound: PciAddress) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with ExitStack() as mapped:
            access.map_dmabuf(export(OFFSET, PART, mapped), mapped)
            assert counts()[0] == 1
        assert counts() == (0, 0, 0) and access.caps().mappings == 0


def read_for_ever(address: PciAddress, ready: int) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(address, stack))
        part = access.map_dmabuf(export(OFFSET, PART, stack), stack)
        found = stack.enter_context(backend(access, str(address), part))
        while True:
            read_all(found, pieces(MIB))
            found.submit(pieces(MIB))
            os.write(ready, b"!")
            while found.in_flight:
                found.wait(SECONDS)


def test_a_killed_owner_lets_go_of_it_once_the_drive_has_stopped(
        bound: PciAddress, bar: mmap.mmap, content: bytes) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            read_for_ever(bound, writing)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"!" and counts()[0] == 1
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert counts() == (0, 0, 0)
    assert not command_register(bound) & BUS_MASTER
    check(bar, content)
    # What was under way does not land any more.
    bar[OFFSET : OFFSET + PART] = bytes(PART)
    with ExitStack() as stack:
        caps = KmodAccess(open_node(bound, stack)).caps()
        assert (caps.mapped_bytes, caps.mappings, caps.leaked) == (0, 0, 0)
    assert not any(bar[OFFSET : OFFSET + PART])


def test_a_function_that_is_unbound_under_its_owner_lets_go_of_it(bound: PciAddress) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with ExitStack() as exported:
            access.map_dmabuf(export(OFFSET, PART, exported), ExitStack())
        assert counts()[0] == 1
        give_back(bound)
        assert counts() == (0, 0, 0)


@pytest.mark.parametrize(("nbytes", "size"), [
    (PAGE + 1, PAGE + 1),
    (PAGE + 1, 2 * PAGE),
    (2 * PAGE, 3 * PAGE),
    (2 * PAGE, PAGE),
    (PAGE, PAGE << 28),
])
def test_an_exporter_that_has_other_pages_than_it_says_is_refused(
        bound: PciAddress, nbytes: int, size: int) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        with ExitStack() as exported, pytest.raises(ModuleError, match="Invalid"):
            access.map_dmabuf(export(0, nbytes, exported, size=size), stack)
        assert access.caps().mappings == 0
        assert counts() == (0, 0, 0)


def test_a_descriptor_of_something_else_is_refused(bound: PciAddress) -> None:
    with ExitStack() as stack:
        access = KmodAccess(open_node(bound, stack))
        for fd, why in ((access.fd, "Invalid"), (9999, "Bad file")):
            with pytest.raises(ModuleError, match=why):
                access.map_dmabuf(fd, stack)
