"""Is a real drive taken and given back by the real kernel, refused when somebody needs it, and safe from kill -9?"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy, refusals
from nvstreamd.hardware.facts import NvmeController
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.system import Ran, System
from vm.guest.commands import nvstreamd
from vm.guest.machine import DEVICES, block_device, controllers, driver, first_bytes

POLICY = Policy(frozenset({"LAB0", "LAB1"}))
# modprobe, power/control, unbind, driver_override, bind, and all of them back.
CHANGES = 10


@pytest.fixture
def blank() -> Iterator[PciAddress]:
    """Drive LAB1, with nothing on it that blkid knows."""
    address = controllers()["LAB1"]
    yield address
    assert driver(address) == "nvme", "the test left the drive elsewhere"
    with block_device(address).open("r+b") as device:
        device.write(bytes(2 << 20))
        os.fsync(device.fileno())
    subprocess.run(["blockdev", "--rereadpt", block_device(address)], check=True)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Names LAB1 alone."""
    path = tmp_path / "nvstreamd.toml"
    path.write_text(f'claims = "{tmp_path}/claims"\n[[drives]]\nserial = "LAB1"\n')
    return path


def state(address: PciAddress) -> dict[str, str]:
    """What a claim may change, read without our code."""
    home = DEVICES / str(address)
    return {"driver": driver(address) or "", "override": (home / "driver_override").read_text(),
            "power": (home / "power/control").read_text(), "enable": (home / "enable").read_text(),
            "module": str(Path("/sys/module/vfio_pci").exists())}


def controller(address: PciAddress) -> NvmeController:
    return next(found for found in take(System()).controllers if found.address == address)


def codes(address: PciAddress) -> set[str]:
    """Why the drive may not be taken."""
    machine = take(System())
    return {refusal.code for refusal in refusals(controller(address), machine, POLICY)}


def test_the_commands_take_a_drive_and_give_it_back_with_its_content(blank: PciAddress, configuration: Path) -> None:
    block_device(blank).write_bytes(b"\0" * 4096 + b"precious" * 512)
    before, config = state(blank), ("--config", configuration)
    planned = nvstreamd("claim", "LAB1", "--dry-run", *config)
    assert planned.status == 0 and f"bind {blank} to vfio-pci" in planned.output, planned
    assert state(blank) == before
    assert nvstreamd("claim", "LAB1", *config).status == 0
    assert driver(blank) == "vfio-pci"
    assert f"{blank}  LAB1  claimed" in nvstreamd("drives", *config).output
    released = nvstreamd("release", "LAB1", *config)
    assert released.status == 0, released
    assert state(blank) == before
    assert controllers()["LAB1"] == blank
    assert first_bytes(blank, 8192)[4096:] == b"precious" * 512


def test_a_drive_that_the_configuration_does_not_name_is_refused(configuration: Path) -> None:
    refused = nvstreamd("claim", "LAB0", "--config", configuration)
    assert refused.status == 1 and "names serial LAB0" in refused.output, refused
    assert driver(controllers()["LAB0"]) == "nvme"


def test_a_blank_drive_may_be_taken(blank: PciAddress) -> None:
    assert codes(blank) == set()


def test_a_file_system_is_refused_mounted_or_not(blank: PciAddress, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", block_device(blank)], check=True)
    assert codes(blank) == {"content"}
    subprocess.run(["mount", block_device(blank), tmp_path], check=True)
    try:
        assert codes(blank) == {"content", "mounted"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_partition_table_is_refused(blank: PciAddress) -> None:
    subprocess.run(["sfdisk", "-q", block_device(blank)], input="label: gpt\n,16M\n,\n", text=True, check=True)
    assert codes(blank) == {"content"}
    disk = controller(blank).namespaces[0]
    assert [part.name for part in disk.partitions] == [f"{disk.name}p1", f"{disk.name}p2"]


def test_swap_is_refused(blank: PciAddress) -> None:
    subprocess.run(["mkswap", block_device(blank)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", block_device(blank)], check=True)
    try:
        assert codes(blank) == {"content", "swap"}
    finally:
        subprocess.run(["swapoff", block_device(blank)], check=True)


def test_a_drive_that_somebody_has_to_himself_is_refused(blank: PciAddress) -> None:
    fd = os.open(block_device(blank), os.O_RDONLY | os.O_EXCL)
    try:
        assert codes(blank) == {"held"}
    finally:
        os.close(fd)


class Killed(System):
    """A machine on which the process dies, by SIGKILL, before or after its n-th change of it."""

    def __init__(self, point: int, after: bool) -> None:
        super().__init__()
        self._point, self._after, self._count = point, after, 0

    def write(self, path: str, text: str) -> None:
        """See System."""
        with self._operation():
            super().write(path, text)

    def run(self, *command: str) -> Ran:
        """See System."""
        if command[0] != "modprobe":
            return super().run(*command)
        with self._operation():
            return super().run(*command)

    @contextmanager
    def _operation(self) -> Iterator[None]:
        mine = self._count == self._point
        self._count += 1
        if mine and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], None]) -> int:
    """How a child that does it ends: 0, or minus the signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def claim_and_release(system: System, journal: Journal, address: PciAddress) -> None:
    claims, machine = Claims(system, journal), take(system)
    found = next(each for each in machine.controllers if each.address == address)
    claims.release(claims.claim(found, claims.plan(found, machine, POLICY)))


@pytest.mark.parametrize("after", [False, True])
def test_kill_9_before_and_after_every_change_is_put_right(blank: PciAddress, tmp_path: Path, after: bool) -> None:
    """Of claim and release, with all that a claim may have to change; and in the middle of putting it right."""
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)
    (DEVICES / str(blank) / "power/control").write_text("auto\n")
    before, kills = state(blank), 0
    for point in range(CHANGES + 1):
        journal = Journal(tmp_path / str(point))
        ended = in_a_child(lambda: claim_and_release(Killed(point, after), journal, blank))  # noqa: B023
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        kills += 1
        second = in_a_child(lambda: _recover(Killed(1, after), journal))  # noqa: B023
        assert second in (0, -signal.SIGKILL)
        Claims(System(), journal).recover()
        assert state(blank) == before, point
        assert not journal.records() and controllers()["LAB1"] == blank, point
    assert kills == CHANGES
    (DEVICES / str(blank) / "power/control").write_text("on\n")


def _recover(system: System, journal: Journal) -> None:
    Claims(system, journal).recover()


def test_a_drive_in_use_is_not_torn_from_its_user(blank: PciAddress, tmp_path: Path) -> None:
    """The kernel would wait for ever inside the unbind: release waits outside, and goes on when the user has ended."""
    claims, machine = Claims(System(), Journal(tmp_path)), take(System())
    found = controller(blank)
    record = claims.claim(found, claims.plan(found, machine, POLICY))
    ready, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            group = os.open(f"/dev/vfio/{found.function.iommu_group}", os.O_RDWR)
            os.write(writing, b"!")
            signal.pause()
            os.close(group)
        finally:
            os._exit(0)
    os.read(ready, 1)
    assert System().is_open(f"dev/vfio/{found.function.iommu_group}")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    claims.release(record)
    assert driver(blank) == "nvme"
