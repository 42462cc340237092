"""Is a drive opened only when it is named, there, meant and, to be written, nobody's?"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.errors import ClaimRefused, DriveInUse, HardwareError, NotFound
from nvstreamd.hardware.blocks import DriveStore
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.journal import Before, Journal, Record
from nvstreamd.hardware.system import System
from support.machines import Recorded, load

SIZE = 1 << 20
SPARE, USED = "LAB0", "LAB1"


@pytest.fixture
def system(tmp_path: Path) -> Recorded:
    """The lab's machine: a blank drive, and one with an ext4."""
    system = load("qemu-q35", tmp_path / "machine")
    (system.root / "dev").mkdir(exist_ok=True)
    for name in ("nvme0n1", "nvme1n1"):
        (system.root / "dev" / name).write_bytes(bytes(SIZE))
    return system


def store(system: System, *serials: str) -> DriveStore:
    return DriveStore(system, Policy(frozenset(serials)), Journal(system.root / "claims"))


def refused(drives: DriveStore, serial: str, kind: type[Exception], *, write: bool, nsid: int = 1) -> str:
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack, pytest.raises(kind) as error:
        drives.open_block(serial, nsid, write=write, stack=stack)
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor stays open"
    assert error.value.hint  # type: ignore[attr-defined]
    return str(error.value)


@pytest.mark.parametrize("write", [False, True])
def test_a_spare_drive_is_opened_whole(system: Recorded, write: bool) -> None:
    with ExitStack() as stack:
        file = store(system, SPARE).open_block(SPARE, 1, write=write, stack=stack)
        assert (file.path, file.size) == ("/dev/nvme0n1 (LAB0)", SIZE)
        if write:
            os.pwrite(file.fd, b"x", 0)
            assert (system.root / "dev/nvme0n1").read_bytes()[:1] == b"x"
        else:
            with pytest.raises(OSError):
                os.pwrite(file.fd, b"x", 0)
        assert not os.get_inheritable(file.fd)
    with pytest.raises(OSError):
        os.fstat(file.fd)


@pytest.mark.parametrize("write", [False, True])
def test_a_drive_that_the_configuration_does_not_name_is_not_even_read(system: Recorded, write: bool) -> None:
    """A manifest that somebody wrote may name any serial number."""
    message = refused(store(system, SPARE), USED, ClaimRefused, write=write)
    assert "[[drives]]" in message and USED in message


def test_a_drive_with_something_on_it_is_not_written_and_every_reason_is_told(system: Recorded) -> None:
    (system.root / "proc/self").mkdir(parents=True, exist_ok=True)
    (system.root / "proc/self/mountinfo").write_text("40 22 259:1 / /srv rw - ext4 /dev/nvme1n1 rw\n")
    drives = store(system, SPARE, USED)
    with ExitStack() as stack, pytest.raises(ClaimRefused) as error:
        drives.open_block(USED, 1, write=True, stack=stack)
    codes = [reason.code for reason in error.value.reasons]  # type: ignore[attr-defined]
    assert codes == ["mounted", "content"] and "umount /srv" in error.value.hint and "ext4" in error.value.hint


def test_a_drive_that_is_not_there_is_not_found(system: Recorded) -> None:
    assert "GONE" in refused(store(system, "GONE"), "GONE", NotFound, write=False)
    assert "namespace 2" in refused(store(system, SPARE), SPARE, NotFound, write=False, nsid=2)


def test_a_claimed_drive_is_said_to_be_claimed(system: Recorded) -> None:
    drives = store(system, SPARE)
    address = PciAddress.parse("0000:00:10.0")
    (system.root / f"sys/bus/pci/devices/{address}/nvme/nvme0/serial").unlink()
    with drives.journal.lock():
        drives.journal.create(Record(address, SPARE, "boot", Before("nvme", "", ""), ()))
    assert "nvstreamd release LAB0" in refused(drives, SPARE, DriveInUse, write=True)


def test_two_drives_of_one_serial_number_are_not_opened(system: Recorded) -> None:
    (system.root / "sys/bus/pci/devices/0000:00:12.0/nvme/nvme1/serial").write_text(SPARE)
    for write in (False, True):
        assert "cannot be told" in refused(store(system, SPARE), SPARE, DriveInUse, write=write)


class Moody(Recorded):
    """A machine whose kernel does not open a device."""

    def __init__(self, root: Path, number: int) -> None:
        super().__init__(root)
        self.number = number

    def open_device(self, device: str, flags: int) -> int:
        """See System."""
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "kind", "words"), [
    (errno.EBUSY, DriveInUse, "lsof /dev/nvme0n1"), (errno.EPERM, HardwareError, "DeviceAllow"),
    (errno.ENOENT, HardwareError, "nvme0n1"), (errno.EROFS, HardwareError, "Read-only")])
def test_why_a_drive_cannot_be_opened_is_told(system: Recorded, number: int, kind: type[Exception], words: str) -> None:
    assert words in refused(store(Moody(system.root, number), SPARE), SPARE, kind, write=True)


class Swapped(Recorded):
    """A machine on which another drive gets the name between the look and the opening."""

    def open_device(self, device: str, flags: int) -> int:
        """See System."""
        (self.root / "sys/bus/pci/devices/0000:00:10.0/nvme/nvme0/serial").write_text("OTHER")
        return super().open_device(device, flags)


def test_a_drive_that_was_swapped_meanwhile_is_not_used(system: Recorded) -> None:
    """Its content would be overwritten without anybody having looked at it."""
    refused(store(Swapped(system.root), SPARE), SPARE, NotFound, write=True)
