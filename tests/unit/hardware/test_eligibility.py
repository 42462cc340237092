"""Is every drive that somebody needs refused, with the reason and what to do, and a spare one not?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.eligibility import Policy, refusals, verdicts
from nvstreamd.hardware.facts import BlockDevice, Machine, NvmeController, PciFunction, Signature

POLICY = Policy(frozenset({"SPARE"}))
DISK = BlockDevice("nvme0n1", 1 << 40, (), (), False, False)
FUNCTION = PciFunction(PciAddress.parse("0000:01:00.0"), 0x144D, 0xA80A, 0x010802, "nvme", None, "12", None, None, (),
                       "on")
SPARE = NvmeController(FUNCTION, "nvme0", "A drive", "SPARE", "1", (DISK,), shared=False)
PARTITION = replace(DISK, name="nvme0n1p2")


def machine(*controllers: NvmeController, beside: tuple[PciFunction, ...] = ()) -> Machine:
    """These controllers, and other functions."""
    functions = (*(each.function for each in controllers), *beside)
    return Machine(functions, controllers, True, "6.1", "boot", "none", None, None)


def function(address: str, class_code: int, driver: str | None, group: str = "12") -> PciFunction:
    """Another function of the machine."""
    return replace(FUNCTION, address=PciAddress.parse(address), class_code=class_code, driver=driver, iommu_group=group)


def with_disk(**changes: object) -> NvmeController:
    """The spare drive, its disk different in some way."""
    return replace(SPARE, namespaces=(replace(DISK, **changes),))


def test_a_spare_drive_that_is_named_may_be_taken() -> None:
    assert refusals(SPARE, machine(SPARE), POLICY) == ()


@pytest.mark.parametrize(("controller", "codes", "words"), [
    (replace(SPARE, serial="OTHER"), ["not_named"], "names serial OTHER"),
    (replace(SPARE, serial=None), ["not_named"], "serial unknown"),
    (replace(SPARE, function=replace(FUNCTION, driver="vfio-pci")), ["other_driver"], "vfio-pci holds 0000:01:00.0"),
    (replace(SPARE, shared=True), ["multipath"], "other controllers"),
    (replace(SPARE, namespaces=()), ["no_namespace"], "shows no namespace"),
    (with_disk(partitions=(replace(PARTITION, mounts=("/",)),), signatures=(Signature("gpt", "partition table"),)),
     ["system", "content"], "this system runs from it"),
    (with_disk(mounts=("/srv/my models",), held=True, signatures=(Signature("ext4", "filesystem"),)),
     ["mounted", "content"], "umount /srv/my models"),
    (with_disk(is_swap=True, held=True), ["swap"], "swapoff /dev/nvme0n1"),
    (with_disk(partitions=(replace(PARTITION, holders=("md0",), held=True),)), ["holders", "content"], "part of md0"),
    (with_disk(holders=("dm-0",), held=True, signatures=(Signature("LVM2_member", "raid"),)), ["holders", "content"],
     "LVM2_member raid"),
    (with_disk(signatures=(Signature("linux_raid_member", "raid"),)), ["content"], "wipefs --all /dev/nvme0n1"),
    (with_disk(signatures=(Signature("zfs_member", "filesystem"),)), ["content"], "zfs_member"),
    (with_disk(signatures=(Signature("crypto_LUKS", "crypto"),)), ["content"], "crypto_LUKS"),
    (with_disk(signatures=None), ["unknown_content"], "cannot be told"),
    (with_disk(held=True), ["held"], "opened exclusively"),
    (with_disk(held=None), ["unknown_use"], "run this as root"),
    (replace(SPARE, function=replace(FUNCTION, iommu_group=None)), ["no_iommu"], "intel_iommu=on"),
])
def test_each_reason_is_named(controller: NvmeController, codes: list[str], words: str) -> None:
    found = refusals(controller, machine(controller), POLICY)
    assert [refusal.code for refusal in found] == codes
    assert any(words in str(refusal) for refusal in found), found
    assert all(refusal.remedy for refusal in found)


def test_all_reasons_are_named_at_once() -> None:
    controller = replace(with_disk(mounts=("/data",), is_swap=True, signatures=(Signature("ext4", "filesystem"),)),
                         serial="OTHER", function=replace(FUNCTION, iommu_group=None))
    assert [refusal.code for refusal in refusals(controller, machine(controller), POLICY)] == [
        "not_named", "mounted", "swap", "content", "no_iommu"]


def test_who_runs_from_a_drive_never_reads_how_to_erase_it() -> None:
    """Mounted itself, or under LVM: the root file system's own commands must not be offered as a remedy."""
    for part in (replace(PARTITION, mounts=("/boot", "/srv")), replace(PARTITION, mounts=("/",), holders=("dm-0",))):
        controller = with_disk(partitions=(part,), signatures=(Signature("gpt", "partition table"),))
        found = refusals(controller, machine(controller), POLICY)
        assert {"system", "content"} <= {refusal.code for refusal in found}
        assert not any("wipefs" in str(refusal) or "out of there" in str(refusal) for refusal in found), found


def test_a_disk_that_is_held_for_its_partitions_sake_is_explained_once() -> None:
    mounted, held = replace(PARTITION, mounts=("/data",), held=True), replace(PARTITION, name="nvme0n1p3", held=True)
    for partitions, codes in (((mounted,), ["mounted"]), ((held,), ["held"]), ((mounted, held), ["mounted", "held"])):
        controller = with_disk(held=True, partitions=partitions)
        found = refusals(controller, machine(controller), POLICY)
        assert [refusal.code for refusal in found if refusal.code != "content"] == codes


def test_every_drive_gets_its_verdict() -> None:
    other = replace(SPARE, serial="OTHER", function=function("0000:02:00.0", 0x010802, "nvme", "13"))
    found = verdicts(machine(SPARE, other), POLICY)
    assert [(each.serial, [reason.code for reason in reasons]) for each, reasons in found] == [
        ("SPARE", []), ("OTHER", ["not_named"])]


def test_two_drives_of_one_serial_number_are_both_refused() -> None:
    twin = replace(SPARE, function=function("0000:02:00.0", 0x010802, "nvme", "13"))
    for controller in (SPARE, twin):
        assert [refusal.code for refusal in refusals(controller, machine(SPARE, twin), POLICY)] == ["ambiguous"]


def test_a_group_is_shared_with_bridges_and_idle_functions_alone() -> None:
    bridge, idle = function("0000:00:01.0", 0x060400, "pcieport"), function("0000:01:00.1", 0x010802, None)
    assert refusals(SPARE, machine(SPARE, beside=(bridge, idle)), POLICY) == ()
    network = function("0000:03:00.0", 0x020000, "igc")
    (refusal,) = refusals(SPARE, machine(SPARE, beside=(bridge, network)), POLICY)
    assert refusal.code == "group" and "0000:03:00.0" in refusal.reason and "igc" in refusal.reason
