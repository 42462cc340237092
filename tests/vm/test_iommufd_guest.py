"""Does iommufd work as a way to a drive, on a kernel that has it? The tests in guest_iommufd/ run in one guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm import lab
from vm.lab import Guest
from vm.test_guests import PYTEST, hardware

SECONDS = 300.0


@pytest.mark.vm
def test_in_a_guest_with_iommufd(guest_folder: Path) -> None:
    if not lab.IOMMUFD_KERNEL.exists():
        pytest.skip("NOT TESTED: iommufd: no Debian kernel has it, and ours was not built here (make lab-kernel)")
    result = lab.unless_it_hangs(lambda: Guest(guest_folder, hardware(guest_folder), lab.IOMMUFD_KERNEL).run(
        f"{PYTEST} tests/vm/guest_iommufd", SECONDS))
    assert result.status == 0, str(result)
    assert not result.faults, str(result)
