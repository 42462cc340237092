"""Does a function that was opened through iommufd serve whoever got its two descriptors, and nobody afterwards?"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.errors import ArenaExhausted
from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.pci.iommufd import IommufdAccess
from nvdma.pci.iommufd_open import NODES, ROOT, cdev_of, has_iommufd, open_cdev
from nvdma.pci.vfio import Device
from nvdma.pci.vfio_calls import BUS_MASTER, VfioError
from nvdma.pci.vfio_open import open_function
from nvdma.pci.window import Window, map_window, open_bar
from nvdma.types import Read, Source
from vm.guest.machine import (
    BAR_OWNER,
    NOBODY,
    command_register,
    first_bytes,
    give_back,
    hand_over,
    without_privilege,
)

MIB = 1 << 20
PAGE = 4096
HUGE_PAGE = 2 * MIB
DEPTH = 32
SECONDS = 60.0
CANARY = 0xA5
LIMIT = 48 * MIB


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """What a process without privilege may pin."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT, LIMIT))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def opened(address: PciAddress, stack: ExitStack) -> IommufdAccess:
    """The function, for this process."""
    found = open_cdev(address, stack)
    return IommufdAccess.attach(found.iommufd, found.device)


def passed_on(address: PciAddress) -> socket.socket:
    """A socket in which the two descriptors lie; nobody else has them any more."""
    giving, taking = socket.socketpair()
    with giving, ExitStack() as stack:
        found = open_cdev(address, stack)
        socket.send_fds(giving, [b"!"], [found.iommufd, found.device])
    return taking


def received(taking: socket.socket) -> IommufdAccess:
    """The function, as an engine gets it: its process must end before the drive can go back."""
    _, (iommufd, device), _, _ = socket.recv_fds(taking, 1, 2)
    return IommufdAccess.attach(iommufd, device)


def backend(access: IommufdAccess, arena: Arena, stack: ExitStack) -> NvmeBackend:
    """An open backend over the first bytes of the drive."""
    found = NvmeBackend("nvme_host", [Drive(access, "drive", DEPTH)], [OnDrive(0, 1, 0)], [Source(-1, "lab", 24 * MIB)],
                        arena)
    found.open()
    stack.callback(found.close)
    return found


def drain(found: NvmeBackend) -> None:
    while found.in_flight:
        found.wait(SECONDS)


def test_a_function_has_a_device_of_its_own_once_vfio_holds_it(drive: PciAddress) -> None:
    """What systemd's DeviceAllow= calls it is in /proc/devices."""
    assert not has_iommufd(drive)
    with ExitStack() as stack, pytest.raises(VfioError, match="cannot be opened through iommufd"):
        open_cdev(drive, stack)
    hand_over(drive, "vfio-pci")
    assert has_iommufd(drive)
    name = cdev_of(drive)
    assert name is not None
    major = os.major((ROOT / NODES / name).stat().st_rdev)
    assert f"{major} vfio-dev" in [line.strip() for line in Path("/proc/devices").read_text().splitlines()]


def read_all_over(access: IommufdAccess, content: bytes) -> None:
    """Pieces of many lengths in a shuffled order; a canary page around each."""
    draw = Random(7)
    with Arena(16 * MIB) as arena, ExitStack() as stack:
        found = backend(access, arena, stack)
        arena.view[:] = bytes([CANARY]) * arena.nbytes
        expected = bytearray(arena.view)
        reads, target = [], PAGE
        for tag in range(DEPTH):
            length = draw.choice([1, 2, 3, 77, 128]) * PAGE
            offset = draw.randrange(0, (len(content) - length) // PAGE) * PAGE
            reads.append(Read(tag, 0, offset, length, target))
            expected[target : target + length] = content[offset : offset + length]
            target += length + PAGE
        draw.shuffle(reads)
        found.submit(reads)
        drain(found)
        assert bytes(arena.view) == expected


def test_every_byte_lands_where_a_process_without_privilege_asked_for_it(drive: PciAddress) -> None:
    content = first_bytes(drive, 24 * MIB)
    hand_over(drive, "vfio-pci")
    with passed_on(drive) as taking:
        without_privilege(lambda: read_all_over(received(taking), content))
    assert not command_register(drive) & BUS_MASTER


def read_for_ever(taking: socket.socket, ready: int) -> None:
    """With a full queue; tells `ready` once it has begun."""
    with Arena(16 * MIB) as arena, ExitStack() as stack:
        found = backend(received(taking), arena, stack)
        while True:
            free = found.facts.depth - found.in_flight
            found.submit([Read(tag, 0, tag * 512 << 10, 512 << 10, tag * 512 << 10) for tag in range(free)])
            os.write(ready, b"!")
            found.wait(SECONDS)


def kill_while_reading(drive: PciAddress) -> None:
    """A child that reads, and kill -9."""
    reading, writing = os.pipe()
    with passed_on(drive) as taking:
        child = os.fork()
        if not child:
            try:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                read_for_ever(taking, writing)
            finally:
                os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reading)


def test_after_a_kill_nothing_lands_any_more_and_the_kernel_reads_the_same_bytes(drive: PciAddress) -> None:
    content = first_bytes(drive, 4 * MIB)
    hand_over(drive, "vfio-pci")
    canary = bytes([CANARY]) * (16 * MIB)
    for _ in range(10):
        kill_while_reading(drive)
        with Arena(len(canary)) as witness:  # of memory that the killed one gave back
            witness.view[:] = canary
            assert not command_register(drive) & BUS_MASTER
            assert bytes(witness.view) == canary
    give_back(drive)
    assert first_bytes(drive, 4 * MIB) == content


def entries(address: PciAddress) -> int:
    """Of the IOMMU's table for a function: one for 2 MiB, or one for a page (drivers/iommu/intel/debugfs.c)."""
    table = Path(f"/sys/kernel/debug/iommu/intel/{address}/domain_translation_struct").read_text()
    return sum(line.startswith("0x") for line in table.splitlines())


def test_addresses_are_aligned_as_memory_is_and_free_again_once_it_is_gone(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        access = opened(drive, stack)
        small = stack.enter_context(Arena(3 * PAGE))
        large = stack.enter_context(Arena(8 * MIB, huge_pages=True))
        begin = access.map_memory(small.view, small.address, stack).bus.at(0)
        later = ExitStack()
        first = access.map_memory(large.view, large.address, later).bus.at(0)
        assert begin > 0 and first > 0 and first % HUGE_PAGE == 0
        assert begin + small.nbytes <= first or first + large.nbytes <= begin
        assert entries(drive) == 3 + large.nbytes // HUGE_PAGE, large.notes
        later.close()
        assert access.map_memory(large.view, large.address, stack).bus.at(0) == first


def test_a_peers_bar_is_no_memory_and_cannot_be_shown_to_a_function(drive: PciAddress) -> None:
    """This is why a drive that writes into a peer's BAR is opened through its group."""
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        access = opened(drive, stack)
        address = map_window(Window(BAR_OWNER, 2, 0, PAGE), open_bar(BAR_OWNER, 2, stack), stack)
        with pytest.raises(VfioError, match="mapping 4096 bytes for the device failed: Bad address"):
            access.map_memory(memoryview(bytes(PAGE)), address, stack)


def pin(taking: socket.socket, nbytes: int, stack: ExitStack) -> None:
    arena = stack.enter_context(Arena(nbytes))
    received(taking).map_memory(arena.view, arena.address, stack)


def pin_too_much(taking: socket.socket) -> None:
    with ExitStack() as stack, pytest.raises(ArenaExhausted, match=rf"RLIMIT_MEMLOCK .*, now {LIMIT} bytes"):
        pin(taking, LIMIT + MIB, stack)


def test_memory_that_may_not_be_pinned_is_refused_with_the_limit(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with passed_on(drive) as taking:
        without_privilege(lambda: pin_too_much(taking))


def pin_in_two_processes(one: socket.socket, other: socket.socket) -> None:
    with ExitStack() as stack, ExitStack() as others:
        pin(one, LIMIT - 8 * MIB, stack)
        without_privilege(lambda: pin(other, LIMIT - 8 * MIB, others))


def test_each_process_of_a_user_may_pin_as_much_as_its_limit_says(drives: tuple[PciAddress, PciAddress]) -> None:
    for address in drives:
        hand_over(address, "vfio-pci")
    with passed_on(drives[0]) as one, passed_on(drives[1]) as other:
        without_privilege(lambda: pin_in_two_processes(one, other))


def test_a_function_is_opened_once_only_in_one_way_or_the_other(drive: PciAddress) -> None:
    hand_over(drive, "vfio-pci")
    with ExitStack() as stack:
        open_cdev(drive, stack)
        with pytest.raises(VfioError, match="another process has it open"):
            open_cdev(drive, stack)
        with pytest.raises(VfioError, match="busy"):
            open_function(drive, stack)
    with ExitStack() as stack:
        assert Device(open_function(drive, stack).device).region(0).nbytes
        with pytest.raises(VfioError, match="it is open through its group"):
            open_cdev(drive, stack)
