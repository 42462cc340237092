"""Do an engine's drives get the descriptors that came for them, and is anything else refused?"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvdma.pci.access import VfioAccess
from nvdma.pci.kmod import KmodAccess
from nvstreamd.engine.claimed import ClaimedDrives
from nvstreamd.engine.commands import ClaimedDrive
from nvstreamd.errors import ProtocolError, StorageError

FIRST = ClaimedDrive(serial="LAB0", address="0000:01:00.0", way="vfio")
SECOND = ClaimedDrive(serial="LAB1", address="0000:02:00.0", way="nvstream")
THIRD = ClaimedDrive(serial="LAB2", address="0000:03:00.0", way="vfio")


def test_each_drive_has_its_own_descriptors_in_order() -> None:
    drives = ClaimedDrives([FIRST, SECOND, THIRD], [10, 11, 12, 13, 14]).drives
    first, second, third = (drives[serial].access for serial in ("LAB0", "LAB1", "LAB2"))
    assert isinstance(first, VfioAccess) and (first.container.fd, first.device.fd) == (10, 11)
    assert isinstance(second, KmodAccess) and second.fd == 12
    assert isinstance(third, VfioAccess) and (third.container.fd, third.device.fd) == (13, 14)


def test_a_drive_without_an_iommu_is_told_of_in_status() -> None:
    (note,) = ClaimedDrives([FIRST, SECOND], [10, 11, 12]).notes
    assert note.startswith("drive LAB1: no IOMMU") and "all of this machine's memory" in note
    assert not ClaimedDrives([FIRST], [10, 11]).notes and not ClaimedDrives([], []).notes


def test_a_drive_that_cannot_be_had_is_an_error_of_the_storage() -> None:
    """Neither descriptor is an iommufd."""
    with Path("/dev/null").open("rb") as null, pytest.raises(StorageError, match="address space"):
        ClaimedDrives([ClaimedDrive("LAB0", "", "iommufd")], [null.fileno(), null.fileno()])


@pytest.mark.parametrize(("given", "fds"), [
    ([FIRST], [10]), ([FIRST], [10, 11, 12]), ([SECOND], []), ([SECOND], [10, 11]), ([], [10]),
    ([ClaimedDrive("LAB0", "", "uio")], [10]), ([ClaimedDrive("LAB0", "", "")], [10, 11]),
])
def test_what_does_not_fit_is_refused(given: list[ClaimedDrive], fds: list[int]) -> None:
    with pytest.raises(ProtocolError):
        ClaimedDrives(given, fds)
