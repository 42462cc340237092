"""Are users' machines, recorded as files, seen as they are, also when half of the files cannot be read?"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.eligibility import Policy, refusals, verdicts
from nvstreamd.hardware.facts import Link
from nvstreamd.hardware.inventory import SECURE_BOOT, take
from nvstreamd.hardware.record import escape, record, unescape
from nvstreamd.hardware.system import System
from support.machines import MACHINES, load, load_tree

GIB = 1 << 30
NAMES = sorted(path.stem for path in MACHINES.glob("*.tree"))


def test_a_desktop_with_a_spare_drive(tmp_path: Path) -> None:
    machine = take(load("desktop", tmp_path))
    assert (machine.kernel, machine.boot_id, machine.lockdown, machine.has_iommu) == ("6.1.0-56-amd64", "5f1c",
                                                                                   "integrity", True)
    (gpu,) = machine.gpus
    assert gpu.bars[:4] == (16 << 20, 32 * GIB, 0, 32 << 20) and gpu.driver == "nvidia"
    assert machine.nvidia is not None and machine.nvidia.endswith("580.95.05  Release Build")
    system, spare = machine.controllers
    assert spare.serial == "S5GXNX0T222222" and spare.address == PciAddress.parse("0000:03:00.0")
    assert spare.function.link == Link("8.0 GT/s PCIe", "4", "16.0 GT/s PCIe", "4")
    assert spare.namespaces[0].nbytes == 1953525168 * 512 and spare.namespaces[0].block_bytes == 512
    assert [part.mounts for part in system.namespaces[0].partitions] == [("/boot/efi",), ("/",)]


def test_on_the_desktop_the_spare_drive_alone_may_be_taken(tmp_path: Path) -> None:
    machine = take(load("desktop", tmp_path))
    policy = Policy(frozenset({"S5GXNX0T111111", "S5GXNX0T222222"}))
    system, spare = (refusals(controller, machine, policy) for controller in machine.controllers)
    assert spare == ()
    assert {refusal.code for refusal in system} == {"system", "content"}


def test_on_the_homelab_box_no_drive_may_be_taken(tmp_path: Path) -> None:
    machine = take(load("homelab", tmp_path))
    policy = Policy(frozenset({"RAID0001", "LVM00001", "SWAP0001"}))
    found = verdicts(machine, policy)
    assert [{refusal.code for refusal in reasons} for _, reasons in found] == [
        {"holders", "mounted", "content", "no_iommu"}, {"holders", "system", "content", "no_iommu"},
        {"swap", "content", "no_iommu"}]
    words = [" ".join(map(str, reasons)) for _, reasons in found]
    assert "nvme0n1 is part of md0" in words[0] and "mounted at /srv/data" in words[0]
    assert "linux_raid_member" in words[0]
    assert "nvme1n1p1 is mounted at /: this system runs from it" in words[1] and "wipefs" not in words[1]


def test_in_the_lab_the_blank_drive_may_be_taken_and_the_other_is_an_ext4(tmp_path: Path) -> None:
    machine = take(load("qemu-q35", tmp_path))
    assert machine.has_iommu and machine.modules == ("nvme",) and machine.secure_boot is None
    (blank, blank_reasons), (_, used_reasons) = verdicts(machine, Policy(frozenset({"LAB0", "LAB1"})))
    assert (blank.serial, blank.model, blank.namespaces[0].nsid) == ("LAB0", "QEMU NVMe Ctrl", 1)
    assert blank_reasons == ()
    assert [refusal.reason for refusal in used_reasons] == ["nvme1n1 has a signature: ext4 filesystem"]
    (window,) = (each for each in machine.functions if (each.vendor, each.device) == (0x1AF4, 0x1110))
    assert window.bars == (256, 0, 256 << 20) and window.driver is None


def test_btrfs_is_found_mounted_although_it_mounts_under_a_number_of_its_own(tmp_path: Path) -> None:
    system = load("qemu-q35", tmp_path)
    line = "40 22 0:45 /@home /home/our\\040models rw - btrfs /dev/nvme0n1 rw,subvol=/@home\n"
    (tmp_path / "proc/self/mountinfo").write_text(line)
    assert take(system).controllers[0].namespaces[0].mounts == ("/home/our models",)


def test_a_drive_that_cannot_be_opened_is_not_taken_for_blank(tmp_path: Path) -> None:
    """blkid has one answer, status 2, for a blank disk and for one that it may not open."""
    system = load("qemu-q35", tmp_path)
    (tmp_path / "answers/held/nvme0n1").write_text("None")
    machine = take(system)
    assert [each.code for each in refusals(machine.controllers[0], machine, Policy(frozenset({"LAB0"})))] == [
        "unknown_use", "unknown_content"]


def test_namespaces_with_several_paths_are_refused(tmp_path: Path) -> None:
    system = load("qemu-q35", tmp_path)
    home = tmp_path / "sys/bus/pci/devices/0000:00:10.0/nvme/nvme0"
    (home / "nvme0n1").rename(home / "nvme0c0n1")
    machine = take(system)
    assert [each.code for each in refusals(machine.controllers[0], machine, Policy(frozenset({"LAB0"})))] == [
        "multipath"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_machine_has_the_same_facts(tmp_path: Path, name: str) -> None:
    system = load(name, tmp_path / "here")
    variable = tmp_path / "here" / SECURE_BOOT
    variable.parent.mkdir(parents=True)
    variable.write_bytes(b"\x06\0\0\0\x01")
    before = sorted(path for path in (tmp_path / "here").rglob("*"))
    machine, tree = record(system)
    assert machine == take(system) and machine.secure_boot is True
    sent = load_tree(tree, tmp_path / "there")
    assert take(sent) == machine
    assert record(sent) == (machine, tree), "recording what was recorded changes something"
    assert sorted(path for path in (tmp_path / "here").rglob("*")) == before


@given(st.binary(max_size=40))
def test_every_content_of_a_file_survives_a_recording(content: bytes) -> None:
    line = escape(content)
    assert line.isascii() and line.isprintable() and not line.startswith("-> ") and line != "/"
    assert unescape(line) == content


@pytest.mark.parametrize("content", [b"-> vfio-pci", b"/", b"a\\040b", b"\\x41", "/srv/mod\u00e8les".encode()])
def test_content_that_looks_like_something_else_survives_a_recording(content: bytes) -> None:
    line = escape(content)
    assert unescape(line) == content and not line.startswith("-> ") and line != "/"


def test_no_other_program_is_ever_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wipefs"):
        System(tmp_path).run("wipefs", "--all", "/dev/null")


def test_what_cannot_be_read_is_unknown_and_no_crash(tmp_path: Path) -> None:
    """Any half of a machine's files missing, many times: containers and old kernels lack all sorts of them."""
    for seed in range(60):
        draw, name = Random(seed), NAMES[seed % len(NAMES)]
        system = load(name, tmp_path / str(seed))
        for path in [path for path in system.root.rglob("*") if path.is_symlink() or path.is_file()]:
            if draw.random() < 0.5:
                path.unlink()
        machine = take(system)
        for controller in machine.controllers:
            assert refusals(controller, machine, Policy(frozenset())), seed


def test_garbage_in_place_of_numbers_is_unknown(tmp_path: Path) -> None:
    system = load("desktop", tmp_path)
    for path in system.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "class":
            path.write_bytes(b"\xff\x00 nonsense -> \n\n 1 2")
    assert len(take(system).functions) == 4
