"""What does every test in the guest with iommufd find? Drives that the kernel's driver, built in, holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvdma.pci.address import PciAddress
from vm.guest.machine import controllers, give_back


@pytest.fixture
def drives() -> Iterator[tuple[PciAddress, PciAddress]]:
    """The functions of drives LAB0 and LAB1; back with the kernel's driver afterwards."""
    found = controllers()
    yield found["LAB0"], found["LAB1"]
    for address in found.values():
        give_back(address)


@pytest.fixture
def drive(drives: tuple[PciAddress, PciAddress]) -> PciAddress:
    """The function of drive LAB0."""
    return drives[0]
