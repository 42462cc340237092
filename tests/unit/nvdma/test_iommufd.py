"""Is iommufd seen where it is, and does what the kernel refuses become an error with a remedy?"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.errors import ArenaExhausted, DmaError
from nvdma.pci.address import PciAddress
from nvdma.pci.iommufd import AddressSpace, IommufdAccess
from nvdma.pci.iommufd_calls import (
    ATTACHMENT,
    BIND,
    DEVICE_ATTACH_IOMMUFD_PT,
    DEVICE_BIND_IOMMUFD,
    IOAS_ALLOC,
    IOAS_MAP,
    IOAS_UNMAP,
    MAP,
    OPTION,
    OPTION_VALUE,
    UNMAP,
)
from nvdma.pci.iommufd_open import cdev_of, has_iommufd, open_cdev
from nvdma.pci.vfio_calls import VfioError

ADDRESS = PciAddress(0, 1, 0, 0)
VFIO_DEVICE = f"sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio3"
NUMBER, IOVA = 7, 0x20_0000


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel's files with everything that the way needs."""
    for name in (VFIO_DEVICE, "dev/vfio/devices"):
        (tmp_path / name).mkdir(parents=True)
    for name in (f"{VFIO_DEVICE}/dev", "dev/vfio/devices/vfio3", "dev/iommu"):
        (tmp_path / name).touch()
    return tmp_path


class Calls:
    """Answers ioctls as the kernel does, keeps which were made, and refuses one with `error`."""

    def __init__(self, refused: int = 0, error: int = 0) -> None:
        self.refused, self.error = refused, error
        self.made: list[tuple[int, int]] = []
        self.unmapped: list[tuple[int, int]] = []

    def __call__(self, fd: int, number: int, argument: bytes | bytearray) -> int:
        self.made.append((fd, number))
        if number == self.refused:
            raise OSError(self.error, os.strerror(self.error))
        if number == IOAS_ALLOC:
            argument[8:12] = NUMBER.to_bytes(4, "little")  # type: ignore[index]
        elif number == IOAS_MAP:
            argument[32:40] = IOVA.to_bytes(8, "little")  # type: ignore[index]
        elif number == IOAS_UNMAP:
            _, space, iova, nbytes = UNMAP.unpack(argument)
            assert space == NUMBER
            self.unmapped.append((iova, nbytes))
        elif number == DEVICE_ATTACH_IOMMUFD_PT:
            assert ATTACHMENT.unpack(argument)[2] == NUMBER
        return 0


def test_structures_have_the_kernels_sizes() -> None:
    """linux/iommufd.h and linux/vfio.h of 6.12, as a C compiler sees them."""
    sizes = {MAP: 40, UNMAP: 24, OPTION_VALUE: 24, BIND: 16, ATTACHMENT: 12}
    assert {layout: layout.size for layout in sizes} == sizes
    assert (IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, OPTION) == (0x3B81, 0x3B85, 0x3B86, 0x3B87)
    assert (DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT) == (0x3B76, 0x3B77)


def test_the_way_is_there_with_both_files_only(kernel: Path) -> None:
    assert has_iommufd(ADDRESS, kernel) and cdev_of(ADDRESS, kernel) == "vfio3"
    (kernel / "dev/iommu").unlink()
    assert not has_iommufd(ADDRESS, kernel)


def test_a_kernel_without_character_devices_has_the_folder_all_the_same(kernel: Path) -> None:
    (kernel / VFIO_DEVICE / "dev").unlink()
    assert cdev_of(ADDRESS, kernel) is None
    assert cdev_of(PciAddress(0, 2, 0, 0), kernel) is None


@pytest.mark.parametrize("refused", [0, errno.EPERM])
def test_a_function_is_bound_once_memory_is_counted_per_process_where_that_may_be_said(
        kernel: Path, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    calls = Calls(OPTION if refused else 0, refused)
    monkeypatch.setattr(fcntl, "ioctl", calls)
    with ExitStack() as stack:
        opened = open_cdev(ADDRESS, stack, kernel)
        assert calls.made == [(opened.iommufd, OPTION), (opened.device, DEVICE_BIND_IOMMUFD)]
        os.fstat(opened.device)
    for fd in (opened.iommufd, opened.device):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize(("error", "remedy"), [
    (errno.EBUSY, "through its group"), (errno.EINVAL, "another process"), (errno.EPERM, "interrupt remapping"),
    (errno.ENODEV, "still bound to vfio-pci")])
def test_what_the_kernel_refuses_to_bind_comes_with_a_remedy_and_is_closed(
        kernel: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Calls(DEVICE_BIND_IOMMUFD, error))
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack, pytest.raises(VfioError, match=remedy):
        open_cdev(ADDRESS, stack, kernel)
    assert os.listdir("/proc/self/fd") == before


def test_memory_is_where_the_kernel_says_until_the_stack_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(fcntl, "ioctl", calls)
    access = IommufdAccess.attach(3, 4)
    assert calls.made == [(3, IOAS_ALLOC), (4, DEVICE_ATTACH_IOMMUFD_PT)]
    with ExitStack() as stack:
        memory = access.map_memory(memoryview(bytearray(8192)), 0x7000, stack)
        assert (memory.address, memory.nbytes, memory.bus.at(1)) == (0x7000, 8192, IOVA + 1)
        assert not calls.unmapped
    assert calls.unmapped == [(IOVA, 8192)]


@pytest.mark.parametrize(("error", "kind", "remedy"), [
    (errno.ENOMEM, ArenaExhausted, "RLIMIT_MEMLOCK"), (errno.ENOSPC, ArenaExhausted, "wider address width"),
    (errno.EFAULT, VfioError, "Bad address")])
def test_memory_that_is_refused_leaves_nothing_to_unmap(
        monkeypatch: pytest.MonkeyPatch, error: int, kind: type[DmaError], remedy: str) -> None:
    calls = Calls(IOAS_MAP, error)
    monkeypatch.setattr(fcntl, "ioctl", calls)
    with ExitStack() as stack, pytest.raises(kind, match=remedy):
        AddressSpace(3, NUMBER).map(memoryview(bytearray(4096)), 0x7000, stack)
    assert not calls.unmapped
