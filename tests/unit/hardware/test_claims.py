"""Is the machine as it was before, whatever happens and whenever: a crash, two crashes, a power cut, a drive pulled?"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvstreamd.errors import ClaimRefused, HardwareError, JournalError
from nvstreamd.hardware import drivers
from nvstreamd.hardware.changes import changes_to_make
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Record
from support.fake_kernel import ADDRESS, DEVICE, SECOND, SERIAL, Crash, FakeKernel, Fate, FatefulJournal

POLICY = Policy(frozenset({SERIAL}))
CLAIMED = {"driver": "vfio-pci", "override": "vfio-pci", "power": "on", "modules": "vfio_pci"}
# Where there is no IOMMU and that is allowed.
UNSAFE = Policy(POLICY.serials, unsafe_noiommu=True)
UNSAFELY_CLAIMED = {"driver": "nvstream", "override": "nvstream", "power": "on", "modules": "nvstream"}
# More operations than claim and release have together; the tests see that no point beyond is ever reached.
MOST_OPERATIONS = 40
MOST_LOOKS = 1 << 20


def machine(root: Path, fate: Fate | None = None, *, has_iommu: bool = True) -> tuple[FakeKernel, Claims]:
    """What a process that has just started sees."""
    kernel = FakeKernel(root / "machine", fate)
    kernel.has_iommu = has_iommu
    return kernel, Claims(kernel, FatefulJournal(root / "claims", kernel))


def claim(kernel: FakeKernel, claims: Claims) -> Record:
    """Takes the drive, if it may be taken."""
    found = take(kernel)
    (controller,) = found.controllers
    return claims.claim(controller, claims.plan(controller, found, POLICY if kernel.has_iommu else UNSAFE))


def claim_and_release(root: Path, fate: Fate, *, has_iommu: bool = True) -> None:
    """A whole life under a fate."""
    kernel, claims = machine(root, fate, has_iommu=has_iommu)
    claims.release(claim(kernel, claims))


def test_a_claim_takes_the_drive_and_its_release_gives_it_back(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    before = kernel.state()
    record = claim(kernel, claims)
    assert kernel.state() == CLAIMED
    assert [held.serial for held in claims.held()] == [SERIAL]
    claims.release(record)
    assert kernel.state() == before and not claims.journal.records()


def test_a_drive_is_given_back_when_its_disks_can_be_opened_again(tmp_path: Path) -> None:
    """The kernel's driver looks for namespaces after it has the drive; who mounts one after a release must find it."""
    kernel, claims = machine(tmp_path)
    kernel.boot()
    record = claim(kernel, claims)
    kernel.late = 5
    claims.release(record)
    assert kernel.exists("dev/nvme0n1")


def test_a_drive_whose_disks_stay_away_is_given_back_and_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(drivers, "EFFECT_SECONDS", 0.05)
    kernel, claims = machine(tmp_path)
    kernel.boot()
    record = claim(kernel, claims)
    kernel.late = MOST_LOOKS
    claims.release(record)
    assert "0 of 1 came" in caplog.text and not claims.journal.records()


def test_without_an_iommu_a_drive_is_our_modules_and_only_where_that_is_allowed(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path, has_iommu=False)
    kernel.boot(power="auto")
    before, found = kernel.state(), take(kernel)
    with pytest.raises(ClaimRefused, match="no IOMMU group"):
        claims.plan(found.controllers[0], found, POLICY)
    record = claim(kernel, claims)
    assert kernel.state() == UNSAFELY_CLAIMED
    assert [held.serial for held in claims.held()] == [SERIAL]
    claims.release(record)
    assert kernel.state() == before and not claims.journal.records()


def test_a_kernel_without_power_management_has_nothing_to_set(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power=None)
    before = kernel.state()
    record = claim(kernel, claims)
    assert kernel.state() == {**CLAIMED, "power": None}
    claims.release(record)
    assert kernel.state() == before


def test_a_drive_with_an_iommu_goes_through_it_whatever_is_allowed(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    found = take(kernel)
    claims.claim(found.controllers[0], claims.plan(found.controllers[0], found, UNSAFE))
    assert kernel.state() == CLAIMED


@pytest.mark.parametrize(("override", "has_iommu"), [("(null)", True), ("nvme", True), ("(null)", False)])
@pytest.mark.parametrize("how", ["crash_before", "crash_after", "tear"])
def test_a_crash_at_any_point_is_put_right_by_the_next_start(
    tmp_path: Path, how: str, override: str, has_iommu: bool,
) -> None:
    """Of claim and release, before and after each change of the machine and each line of the journal."""
    crashes = 0
    for point in range(MOST_OPERATIONS):
        root = tmp_path / str(point)
        kernel, _ = machine(root, has_iommu=has_iommu)
        kernel.boot(override=override)
        before = kernel.state()
        try:
            claim_and_release(root, Fate(**{how: point}), has_iommu=has_iommu)
        except Crash:
            crashes += 1
            _, claims = machine(root)
            claims.recover()
        assert kernel.state() == before, point
        assert not list((root / "claims").glob("*.claim")), point
    assert 8 <= crashes < MOST_OPERATIONS


def is_crashed(root: Path, fate: Fate, *, claiming: bool) -> bool:
    """Whether a life under a fate, or putting one right, ended in a crash."""
    try:
        claim_and_release(root, fate) if claiming else machine(root, fate)[1].recover()
    except Crash:
        return True
    return False


def test_a_second_crash_while_the_first_is_put_right_is_put_right_as_well(tmp_path: Path) -> None:
    firsts = seconds = 0
    for point in range(MOST_OPERATIONS):
        for second in range(MOST_OPERATIONS):
            root = tmp_path / f"{point}-{second}"
            kernel, _ = machine(root)
            kernel.boot()
            before = kernel.state()
            first_crashed = is_crashed(root, Fate(crash_after=point), claiming=True)
            second_crashed = is_crashed(root, Fate(crash_before=second), claiming=False)
            firsts, seconds = firsts + first_crashed, seconds + second_crashed
            machine(root)[1].recover()
            assert kernel.state() == before, (point, second)
            assert not list((root / "claims").glob("*.claim")), (point, second)
            # A later second crash would come after the end.
            if not second_crashed:
                break
        if not first_crashed:
            break
    assert firsts > seconds > 40


def test_after_a_power_cut_the_kernel_has_forgotten_and_so_do_we(tmp_path: Path) -> None:
    for point in range(MOST_OPERATIONS):
        root = tmp_path / str(point)
        kernel, _ = machine(root)
        kernel.boot()
        before = kernel.state()
        try:
            claim_and_release(root, Fate(crash_after=point))
        except Crash:
            kernel.boot("boot-2")
            fate = Fate()
            machine(root, fate)[1].recover()
            assert not any(operation.startswith("write") for operation in fate.log), fate.log
        assert kernel.state() == before and not list((root / "claims").glob("*.claim")), point


def test_a_drive_that_is_pulled_out_at_any_point_leaves_nothing_behind(tmp_path: Path) -> None:
    for point in range(MOST_OPERATIONS):
        root = tmp_path / str(point)
        kernel, _ = machine(root)
        kernel.boot()
        try:
            claim_and_release(root, Fate(pull_before=point))
        except HardwareError:
            machine(root)[1].recover()
        assert not list((root / "claims").glob("*.claim")), point
        assert not kernel.exists("sys/module/vfio_pci"), point


def test_a_change_that_the_kernel_refuses_takes_the_others_back(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    before = kernel.state()
    (controller,) = take(kernel).controllers
    changes = [change for change in changes_to_make(kernel, controller.function) if "override" not in change.describe()]
    with pytest.raises(HardwareError, match="No such device"):
        claims.claim(controller, changes)
    assert kernel.state() == before and not claims.journal.records()


def test_a_complete_claim_is_taken_back_as_well(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    claim(kernel, claims)
    _, later = machine(tmp_path)
    assert [record.serial for record in later.recover()] == [SERIAL]
    assert kernel.read(f"{DEVICE}/driver_override") == "(null)"


def test_what_is_not_as_before_is_an_error_and_the_claim_stays_known(tmp_path: Path) -> None:
    """Somebody else changed the function in the meantime: that is for the administrator to judge."""
    kernel, claims = machine(tmp_path)
    kernel.boot()
    record = claim(kernel, claims)
    record.before = type(record.before)("other", "", "on")
    with pytest.raises(HardwareError, match="after its release"):
        claims.release(record)
    assert len(claims.journal.records()) == 1


def test_a_drive_that_may_not_be_taken_is_refused_with_every_reason(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    (kernel.root / DEVICE / "iommu_group").unlink()
    found = take(kernel)
    with pytest.raises(ClaimRefused) as refused:
        claims.plan(found.controllers[0], found, Policy(frozenset()))
    assert [reason.code for reason in refused.value.reasons] == ["not_named", "no_iommu"]  # type: ignore[attr-defined]


def test_a_drive_is_claimed_once_only(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    found = take(kernel)
    changes = claims.plan(found.controllers[0], found, POLICY)
    claims.claim(found.controllers[0], changes)
    with pytest.raises(JournalError, match="claimed already"):
        claims.claim(found.controllers[0], changes)
    assert kernel.state() == CLAIMED


def test_one_process_at_a_time(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    with claims.journal.lock(), pytest.raises(JournalError, match="another process"):
        machine(tmp_path)[1].recover()


@pytest.mark.parametrize("content", ["", "{}", "null", '{"version": 2}', '{"version": 1, "address": "x"}', "\x00" * 99])
def test_a_claim_that_cannot_be_read_is_never_lost(tmp_path: Path, content: str) -> None:
    _, claims = machine(tmp_path)
    claims.journal.directory.mkdir(parents=True)
    path = claims.journal.directory / f"{ADDRESS}-{SERIAL}.claim"
    path.write_text(content)
    with pytest.raises(JournalError, match="cannot be read"):
        claims.recover()
    assert path.read_text() == content


def test_a_claim_that_cannot_be_read_does_not_stand_in_another_drives_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot()
    claims.journal.directory.mkdir(parents=True)
    path = claims.journal.directory / f"{SECOND}-OTHER.claim"
    path.write_text("torn")
    record = claim(kernel, claims)
    assert [held.serial for held in claims.held()] == [SERIAL]
    claims.release(record)
    assert path.exists() and f"{path}: this claim cannot be read" in caplog.text


def test_a_plan_says_what_it_does_and_how_it_is_undone(tmp_path: Path) -> None:
    kernel, claims = machine(tmp_path)
    kernel.boot(power="auto")
    found = take(kernel)
    changes = claims.plan(found.controllers[0], found, POLICY)
    assert [(change.describe(), change.describe_revert()) for change in changes] == [
        ("modprobe vfio-pci", "modprobe -r vfio-pci, if nothing else uses it"),
        (f"power/control of {ADDRESS}: auto -> on", f"power/control of {ADDRESS}: on -> auto"),
        (f"unbind {ADDRESS} from nvme", f"bind {ADDRESS} to nvme"),
        (f"driver_override of {ADDRESS}: (none) -> vfio-pci", f"driver_override of {ADDRESS}: vfio-pci -> (none)"),
        (f"bind {ADDRESS} to vfio-pci", f"unbind {ADDRESS} from vfio-pci, once no process has it open"),
    ]
    assert kernel.fate.operations == 0
