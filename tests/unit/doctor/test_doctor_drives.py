"""Whose is a drive, as the doctor says it: ours, spare, the system's, or nobody can tell?"""

from __future__ import annotations

from pathlib import Path

from nvstreamd.doctor.ownership import ownership
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from support.fake_kernel import SERIAL, FakeKernel
from unit.doctor.rig import SPARE, USER, Examined, examined, notes, reasons

DEVICES = "sys/bus/pci/devices"
DRIVE = f"{DEVICES}/0000:44:00.0"


def test_who_runs_from_a_drive_is_not_told_to_name_it_in_the_configuration(tmp_path: Path) -> None:
    """Nor how to erase it: a remedy is followed."""
    for name in ("desktop", "homelab"):
        told = reasons(examined(name, tmp_path / name).verdicts()["nvme_host"])
        lines = [line for line in told.splitlines() if "this system runs from it" in line]
        assert lines and all(line.endswith("-> use another drive") for line in lines), told
    assert "nvme0n1 is part of md0" in told and "swapoff /dev/nvme2n1p1" in told


def test_what_the_journal_says_is_claimed_counts_and_nothing_else(tmp_path: Path) -> None:
    """Half a claim, or one of an earlier start of the machine, is not a drive of ours."""
    kernel, policy = FakeKernel(tmp_path / "machine"), Policy(frozenset({SERIAL}))
    kernel.boot()
    claims = Claims(kernel, Journal(tmp_path / "claims"))
    assert not ownership(claims, policy).claimed
    machine = take(kernel)
    (controller,) = machine.controllers
    record = claims.claim(controller, claims.plan(controller, machine, policy))
    assert dict(ownership(claims, policy).claimed) == {record.address: SERIAL}
    kernel.boot("boot-2")
    assert not ownership(claims, policy).claimed


def claimed(tmp_path: Path) -> Examined:
    """The server, its spare drive claimed: the kernel's driver shows nothing of it any more."""
    machine = examined("gpu-server", tmp_path).put(f"{DRIVE}/nvme", None).put(f"{DRIVE}/driver", None)
    (tmp_path / DRIVE / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    return machine.but(claimed={SPARE: "SPARE001"})


def test_a_claimed_drive_makes_the_path_available(tmp_path: Path) -> None:
    found = claimed(tmp_path).verdicts()["nvme_host"]
    assert found.is_available and "no drive is claimed yet" not in notes(found)
    assert any(f"{SPARE} (SPARE001) is claimed" in check.found for check in found.checks)


def test_who_shares_a_claimed_drives_group_is_named(tmp_path: Path) -> None:
    """VFIO refuses to open it then, and sends its user here."""
    machine = claimed(tmp_path)
    home = tmp_path / DEVICES / "0000:01:00.0"
    (home / "iommu_group").unlink()
    (home / "iommu_group").symlink_to("../../../../kernel/iommu_groups/15")
    told = reasons(machine.verdicts()["nvme_host"])
    assert "0000:01:00.0 is in IOMMU group 15 as well, and driver nvme holds it" in told and "another slot" in told


def test_a_drive_with_vfio_that_nobody_claimed_here_is_not_called_ours(tmp_path: Path) -> None:
    machine = claimed(tmp_path).but(claimed={})
    assert "the driver vfio-pci holds 0000:44:00.0" in reasons(machine.verdicts()["nvme_host"])
    told = reasons(machine.but(process=USER).verdicts()["nvme_host"])
    assert "without root it cannot be read" in told and "0000:44:00.0" not in told


def test_without_root_what_cannot_be_read_is_a_reason_of_its_own(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path).put("answers/held/nvme1n1", "None").but(process=USER)
    verdict = machine.verdicts()["nvme_host"]
    assert verdict.reasons[0].remedy == "sudo nvstreamd doctor" and "without root" in verdict.reasons[0].reason
    assert "SPARE001" not in reasons(verdict) and "SYSTEM01" in reasons(verdict)
