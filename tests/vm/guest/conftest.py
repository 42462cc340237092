"""What does every file of tests in the guest find? Modules loaded, drives in the hands of the kernel's driver."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from nvdma.pci.address import PciAddress
from vm.guest.machine import controllers, give_back


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    """No udev runs here that would load them; a file before may have unloaded one."""
    for name in ("nvme", "vfio-pci", "ext4"):
        subprocess.run(["modprobe", name], check=True)


@pytest.fixture
def drive() -> Iterator[PciAddress]:
    """The function of drive LAB0; back with the kernel's driver afterwards."""
    address = controllers()["LAB0"]
    yield address
    give_back(address)
