"""Are users' machines, recorded as files, seen as they are, also when half of the files cannot be read?"""

from __future__ import annotations

from pathlib import Path
from random import Random

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.eligibility import Policy, refusals
from nvstreamd.hardware.facts import Link
from nvstreamd.hardware.inventory import take
from support.machines import MACHINES, load

GIB = 1 << 30


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
    found = [{refusal.code for refusal in refusals(each, machine, policy)} for each in machine.controllers]
    assert found == [{"holders", "no_iommu"}, {"holders", "content", "no_iommu"}, {"swap", "content", "no_iommu"}]


def test_what_cannot_be_read_is_unknown_and_no_crash(tmp_path: Path) -> None:
    """Any half of a machine's files missing, many times: containers and old kernels lack all sorts of them."""
    for seed in range(60):
        draw, name = Random(seed), sorted(path.stem for path in MACHINES.glob("*.tree"))[seed % 2]
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
