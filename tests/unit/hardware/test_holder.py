"""Does a model get its drives together or not at all, and does the kernel get every one of them back?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.errors import ClaimRefused, DriveInUse, HardwareError, NotFound
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.drivers import driver_of
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.held import HeldDrive
from nvstreamd.hardware.holder import ClaimHolder
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from support.fake_kernel import ADDRESS, SECOND, SERIAL, FakeKernel, Fate

OTHER = "LAB1"
WAIT, DEADLINE = 0.2, 10.0


def kernel_of(root: Path, fate: Fate | None = None) -> FakeKernel:
    kernel = FakeKernel(root / "machine", fate)
    kernel.boot(drives=(ADDRESS, SECOND))
    return kernel


def holder_of(root: Path, kernel: FakeKernel, *serials: str) -> ClaimHolder:
    return ClaimHolder(Claims(kernel, Journal(root / "claims")), Policy(frozenset(serials)))


def drivers(kernel: FakeKernel) -> list[str | None]:
    return [driver_of(kernel, address) for address in (ADDRESS, SECOND)]


def test_drives_are_taken_and_come_back_with_the_stack(tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    assert [found.serial for found in take(kernel).controllers] == [SERIAL, OTHER]
    holder = holder_of(tmp_path, kernel, SERIAL, OTHER)
    with ExitStack() as stack:
        held = holder.hold([OTHER, SERIAL], stack)
        assert [(drive.serial, drive.address) for drive in held] == [(OTHER, SECOND), (SERIAL, ADDRESS)]
        assert drivers(kernel) == ["vfio-pci", "vfio-pci"]
    assert drivers(kernel) == ["nvme", "nvme"] and not holder.claims.journal.records()


@pytest.mark.parametrize(("second", "named", "error"), [
    ("NOWHERE", (SERIAL, "NOWHERE"), NotFound), (OTHER, (SERIAL,), ClaimRefused), (SERIAL, (SERIAL,), DriveInUse),
])
def test_when_one_cannot_be_had_none_is_kept(tmp_path: Path, second: str, named: tuple[str, ...],
                                            error: type[Exception]) -> None:
    kernel = kernel_of(tmp_path)
    holder = holder_of(tmp_path, kernel, *named)
    with ExitStack() as stack:
        with pytest.raises(error):
            holder.hold([SERIAL, second], stack)
        assert drivers(kernel) == ["nvme", "nvme"]
        assert holder.hold([SERIAL], stack)


def test_two_models_do_not_share_a_drive_and_the_second_may_have_it_afterwards(tmp_path: Path) -> None:
    holder = holder_of(tmp_path, kernel_of(tmp_path), SERIAL)
    with ExitStack() as first:
        holder.hold([SERIAL], first)
        with ExitStack() as second, pytest.raises(DriveInUse, match="another model's"):
            holder.hold([SERIAL], second)
    with ExitStack() as second:
        assert holder.hold([SERIAL], second)


def test_a_drive_that_models_read_through_the_kernel_is_not_taken_from_under_them(tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    holder = holder_of(tmp_path, kernel, SERIAL, OTHER)
    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        holder.share([SERIAL], first)
        holder.share([OTHER, SERIAL], second)
        first.close()
        with pytest.raises(DriveInUse, match="read through the kernel"):
            holder.hold([SERIAL], third)
        assert drivers(kernel) == ["nvme", "nvme"]
        second.close()
        assert holder.hold([SERIAL, OTHER], third)


def test_a_drive_that_a_model_has_is_not_the_kernels_to_read(tmp_path: Path) -> None:
    holder = holder_of(tmp_path, kernel_of(tmp_path), SERIAL, OTHER)
    with ExitStack() as first, ExitStack() as second:
        holder.hold([SERIAL], first)
        with pytest.raises(DriveInUse, match="another model's"):
            holder.share([OTHER, SERIAL], second)
        assert holder.hold([OTHER], first), "what was shared before the refusal is free again"


class Interrupted(FakeKernel):
    """A machine on which something else begins in the midst of the first change of it."""

    meanwhile: Callable[[], object] | None = None

    def write(self, path: str, text: str) -> None:
        """See System."""
        begin, self.meanwhile = self.meanwhile, None
        if begin is not None:
            begin()
        super().write(path, text)


def test_models_that_load_beside_each_other_both_get_their_drives(tmp_path: Path) -> None:
    kernel = Interrupted(tmp_path / "machine")
    kernel.boot(drives=(ADDRESS, SECOND))
    holder = holder_of(tmp_path, kernel, SERIAL, OTHER)
    with ThreadPoolExecutor() as pool, ExitStack() as first, ExitStack() as second:
        others: list[Future[Sequence[HeldDrive]]] = []

        def begin() -> None:
            others.append(pool.submit(holder.hold, [OTHER], second))
            with suppress(TimeoutError):  # it has to wait for us
                others[0].result(WAIT)

        kernel.meanwhile = begin
        holder.hold([SERIAL], first)
        assert others[0].result(DEADLINE) and drivers(kernel) == ["vfio-pci", "vfio-pci"]
    assert drivers(kernel) == ["nvme", "nvme"]


def test_what_a_daemon_before_us_left_is_given_back_at_the_start(tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    holder_of(tmp_path, kernel, SERIAL).hold([SERIAL], ExitStack())  # and is killed
    assert drivers(kernel) == ["vfio-pci", "nvme"]
    holder_of(tmp_path, kernel, SERIAL).recover()
    assert drivers(kernel) == ["nvme", "nvme"]


def test_a_drive_that_cannot_be_given_back_stays_in_the_journal(tmp_path: Path,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    fate = Fate()
    kernel = kernel_of(tmp_path, fate)
    holder = holder_of(tmp_path, kernel, SERIAL)
    with ExitStack() as stack:
        holder.hold([SERIAL], stack)
        fate.refuse_from = fate.operations
    assert "is not given back" in caplog.text
    assert [record.address for record in holder.claims.journal.records()] == [PciAddress.parse(ADDRESS)]
    fate.refuse_from = None
    holder.recover()
    assert drivers(kernel) == ["nvme", "nvme"]


@pytest.mark.parametrize(("has_iommu", "driver"), [(True, "vfio-pci"), (False, "nvstream")])
def test_opening_says_which_drive_and_why(tmp_path: Path, has_iommu: bool, driver: str) -> None:
    """There is no such function on this machine: what VFIO says, or our module, is an error of ours."""
    kernel = FakeKernel(tmp_path / "machine")
    kernel.has_iommu = has_iommu
    kernel.boot()
    policy = Policy(frozenset({SERIAL}), unsafe_noiommu=True)
    with ExitStack() as stack:
        (drive,) = ClaimHolder(Claims(kernel, Journal(tmp_path / "claims")), policy).hold([SERIAL], stack)
        with pytest.raises(HardwareError, match=f"{SERIAL}: .* not by {driver}"):
            drive.open(stack, stack)


def test_a_drive_without_an_iommu_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel(tmp_path / "machine")
    kernel.has_iommu = False
    kernel.boot()
    with ExitStack() as stack:
        with pytest.raises(ClaimRefused):
            holder_of(tmp_path, kernel, SERIAL).hold([SERIAL], stack)
        policy = Policy(frozenset({SERIAL}), unsafe_noiommu=True)
        ClaimHolder(Claims(kernel, Journal(tmp_path / "claims")), policy).hold([SERIAL], stack)
        assert driver_of(kernel, ADDRESS) == "nvstream" and "can read and write all" in caplog.text
    assert driver_of(kernel, ADDRESS) == "nvme"
