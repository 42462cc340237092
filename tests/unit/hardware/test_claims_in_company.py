"""Is the machine as it was before when others change it as well: another claim, another driver, a full disk?"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.errors import HardwareError, JournalError, NvstreamError
from nvstreamd.hardware.changes import changes_to_make
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal, Record
from nvstreamd.hardware.system import System
from support.fake_kernel import ADDRESS, DRIVERS, SECOND, FakeKernel, Fate

POLICY = Policy(frozenset({"LAB0", "LAB1"}))
BOTH = (ADDRESS, SECOND)
# More changes than a claim makes and takes back.
MOST_CHANGES = 12
INTERRUPTIONS: dict[str, type[BaseException]] = {
    "Ctrl-C": KeyboardInterrupt, "exit": SystemExit, "memory": MemoryError,
}


def machine(root: Path, fate: Fate | None = None) -> tuple[FakeKernel, Claims]:
    """What a process that has just started sees."""
    kernel = FakeKernel(root / "machine", fate)
    return kernel, Claims(kernel, Journal(root / "claims"))


def claim(kernel: FakeKernel, claims: Claims, address: str = ADDRESS) -> Record:
    """Takes one of the drives, if it may be taken."""
    found = take(kernel)
    (controller,) = (each for each in found.controllers if each.address == PciAddress.parse(address))
    return claims.claim(controller, claims.plan(controller, found, POLICY))


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_claims_the_last_to_end_unloads_what_the_first_has_loaded(tmp_path: Path, first: int) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(drives=BOTH)
    before = [kernel.state(address) for address in BOTH]
    records = [claim(kernel, claims, address) for address in BOTH]
    claims.release(records[first])
    assert kernel.state(BOTH[1 - first])["driver"] == "vfio-pci", "the other drive was taken from its user"
    claims.release(records[1 - first])
    assert [kernel.state(address) for address in BOTH] == before


def test_a_function_that_somebody_else_has_given_to_vfio_stays_his(tmp_path: Path) -> None:
    """A virtual machine's card: unloading the module would take it from him although he has it not open."""
    kernel, claims = machine(tmp_path)
    kernel.boot(drives=BOTH)
    record = claim(kernel, claims)
    kernel.write(f"sys/bus/pci/devices/{SECOND}/driver_override", "vfio-pci")
    kernel.write(f"{DRIVERS}/nvme/unbind", SECOND)
    kernel.write(f"{DRIVERS}/vfio-pci/bind", SECOND)
    claims.release(record)
    assert kernel.state(SECOND)["driver"] == "vfio-pci" and kernel.state()["driver"] == "nvme"


def test_a_module_that_was_loaded_before_stays_loaded(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    kernel.run("modprobe", "vfio-pci")
    before = kernel.state()
    claims.release(claim(kernel, claims))
    assert kernel.state() == before


def test_a_drive_that_is_mounted_after_the_plan_was_made_is_not_torn_out(tmp_path: Path) -> None:
    """Unbinding a mounted drive is pulling it out: what was not written yet would be lost."""
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    before, found = kernel.state(), take(kernel)
    changes = claims.plan(found.controllers[0], found, POLICY)
    kernel.held.add("nvme0n1")
    with pytest.raises(HardwareError, match="nvme0n1 came into use"):
        claims.claim(found.controllers[0], changes)
    assert kernel.state() == before and not claims.journal.records()


@pytest.mark.parametrize("name", ["0000-first", "zzzz-last"])
def test_a_claim_that_cannot_be_read_does_not_keep_the_others_from_being_put_right(tmp_path: Path, name: str) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    before = kernel.state()
    claim(kernel, claims)
    (claims.journal.directory / f"{name}.claim").write_text("?")
    with pytest.raises(JournalError, match=name):
        machine(tmp_path)[1].recover()
    assert kernel.state() == before
    assert [path.stem for path in claims.journal.paths()] == [name]


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A change at which the administrator presses Ctrl-C, or systemd's patience ends."""

    kind: ClassVar[str] = "interrupted"
    error: str

    def describe(self) -> str:
        """See Change."""
        return "wait for Ctrl-C"

    def describe_revert(self) -> str:
        """See Change."""
        return "nothing"

    def apply(self, system: System) -> None:
        """See Change."""
        raise INTERRUPTIONS[self.error]

    def revert(self, system: System) -> None:
        """See Change."""


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_a_claim_that_is_interrupted_is_taken_back(tmp_path: Path, error: str) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    before, (controller,) = kernel.state(), take(kernel).controllers
    real = changes_to_make(kernel, controller.function)
    for place in range(len(real) + 1):
        with pytest.raises(INTERRUPTIONS[error]):
            claims.claim(controller, [*real[:place], Interrupted(error), *real[place:]])
        assert kernel.state() == before and not claims.journal.paths(), place


def test_a_drive_that_is_pulled_out_while_it_is_given_back_is_no_error(tmp_path: Path) -> None:
    for point in range(MOST_CHANGES):
        kernel, claims = machine(tmp_path / str(point))
        kernel.boot(power="auto")
        record = claim(kernel, claims)
        kernel.fate = Fate(pull_before=point)
        claims.release(record)
        assert not claims.journal.paths() and not kernel.exists("sys/module/vfio_pci"), point


def test_a_new_drive_in_the_place_of_a_claimed_one_is_left_to_the_kernel(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    claim(kernel, claims)
    kernel.pull()
    kernel.plug(power="auto")
    fresh, wrote = kernel.state(), kernel.fate.operations
    _, later = machine(tmp_path)
    assert later.held() == []
    later.recover()
    assert kernel.state() == {**fresh, "modules": ""} and not later.journal.paths()
    assert kernel.fate.operations == wrote


def test_what_the_kernel_refuses_to_take_back_is_told_and_put_right_later(tmp_path: Path) -> None:
    """From some change on nothing is accepted any more, as from a drive that hangs.

    All but the module, whose unloading is only tried: what it costs nobody is worth no error.
    """
    refused = 0

    def state(kernel: FakeKernel) -> dict[str, str | None]:
        return {name: value for name, value in kernel.state().items() if name != "modules"}

    for point in range(MOST_CHANGES):
        kernel, claims = machine(tmp_path / str(point))
        kernel.boot(power="auto")
        before = state(kernel)
        kernel.fate = Fate(refuse_from=point)
        try:
            claims.release(claim(kernel, claims))
        except HardwareError as error:
            refused += 1
            assert "Input/output error" in error.message and error.hint, point
            assert bool(claims.journal.paths()) == (state(kernel) != before), point
        machine(tmp_path / str(point))[1].recover()
        assert state(kernel) == before and not claims.journal.paths(), point
    assert 8 <= refused < MOST_CHANGES


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """Writing ends there, as on a disk that is full; the kernel says EFBIG in place of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_any_line_of_the_journal_ends_the_claim_before_its_change(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    before, record = kernel.state(), claim(kernel, claims)
    whole = record.path.stat().st_size
    claims.release(record)
    for nbytes in (*range(0, whole - 200, 90), *range(whole - 200, whole, 9)):
        with largest_file(nbytes), pytest.raises(JournalError, match="journal of claims") as refused:
            # The kernel's attributes lie in a real file system here as well, and are small.
            claim(kernel, claims)
        assert isinstance(refused.value, NvstreamError) and refused.value.hint
        assert kernel.state() == before and not claims.journal.paths(), nbytes
    with largest_file(whole):
        claims.release(claim(kernel, claims))
    assert kernel.state() == before
