"""Which NVMe controllers are there, and what does the kernel keep on their namespaces?"""

from __future__ import annotations

import re
from dataclasses import replace

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.facts import NVME_CLASS, BlockDevice, NvmeController, PciFunction, Signature
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.system import System
from nvstreamd.hardware.uses import Uses, uses

SECTOR = 512  # the unit of sysfs' sizes, whatever the device's blocks are
BLOCK = "sys/class/block"
NAMESPACE = re.compile(r"nvme\d+n\d+")
# One of several paths to a namespace that a subsystem of more controllers may share.
SHARED_PATH = re.compile(r"nvme\d+c\d+n\d+")
NOTHING_FOUND = 2


def controllers(system: System, found: tuple[PciFunction, ...]) -> tuple[NvmeController, ...]:
    """The controllers among the machine's functions."""
    used = uses(system)
    return tuple(_controller(system, each, used) for each in found if each.class_code == NVME_CLASS)


def serial_of(system: System, address: PciAddress) -> str | None:
    """A controller's serial number, which the kernel's driver knows; None while that does not have it."""
    home = path_of(address, "nvme")
    for name in system.names(home):
        return system.read(f"{home}/{name}/serial")
    return None


def disks_of(system: System, address: PciAddress) -> tuple[str, ...]:
    """Names of the disks that the kernel's driver makes of a controller, and of their partitions."""
    return tuple(name for disk in _whole_disks(system, address) for name in (disk, *partitions_of(system, disk)))


def nodes_of(system: System, address: PciAddress) -> tuple[str, ...]:
    """Names of a controller's disks that have their node in /dev already."""
    return tuple(disk for disk in _whole_disks(system, address) if system.exists(f"dev/{disk}"))


def partitions_of(system: System, disk: str) -> tuple[str, ...]:
    """Names of a disk's partitions."""
    home = f"{BLOCK}/{disk}"
    return tuple(name for name in system.names(home)
                 if name.startswith(disk) and system.exists(f"{home}/{name}/partition"))


def _whole_disks(system: System, address: PciAddress) -> list[str]:
    home = path_of(address, "nvme")
    entries = [entry for name in system.names(home) for entry in system.names(f"{home}/{name}")]
    return [entry for entry in entries if NAMESPACE.fullmatch(entry)]


def _controller(system: System, function: PciFunction, used: Uses) -> NvmeController:
    names = system.names(path_of(function.address, "nvme"))
    name = names[0] if names else None
    home = path_of(function.address, f"nvme/{name}")
    entries = system.names(home) if name else []

    def read(attribute: str) -> str | None:
        return system.read(f"{home}/{attribute}") if name else None

    disks = tuple(_disk(system, each, used) for each in entries if NAMESPACE.fullmatch(each))
    return NvmeController(function, name, read("model"), read("serial"), read("firmware_rev"), disks,
                          any(SHARED_PATH.fullmatch(each) for each in entries))


def _disk(system: System, name: str, used: Uses) -> BlockDevice:
    whole = _device(system, name, used)
    # blkid says "nothing found" of what it could not open as well.
    found = None if whole.held is None else signatures(system, name)
    return replace(whole, partitions=tuple(_device(system, each, used) for each in partitions_of(system, name)),
                   signatures=found, block_bytes=_number(system, f"{BLOCK}/{name}/queue/logical_block_size"),
                   nsid=_number(system, f"{BLOCK}/{name}/nsid"))


def _device(system: System, name: str, used: Uses) -> BlockDevice:
    names = (name, *_built_on(system, name))
    places = dict.fromkeys(place for each in names for place in used.places(system, each))
    return BlockDevice(name, (_number(system, f"{BLOCK}/{name}/size") or 0) * SECTOR, tuple(places),
                       tuple(system.names(f"{BLOCK}/{name}/holders")), any(each in used.swaps for each in names),
                       system.is_held(name))


def _built_on(system: System, name: str) -> tuple[str, ...]:
    """Everything that the kernel has built on a device: the array on it, the volumes on that, and so on."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        for holder in system.names(f"{BLOCK}/{waiting.pop()}/holders"):
            if holder not in found:
                found[holder] = None
                # An array may be partitioned (md0p1), and a partition of it mounted.
                waiting += [holder, *partitions_of(system, holder)]
                found |= dict.fromkeys(partitions_of(system, holder))
    return tuple(found)


def _number(system: System, path: str) -> int | None:
    text = system.read(path) or ""
    return int(text) if text.isdecimal() else None


def signatures(system: System, name: str) -> tuple[Signature, ...] | None:
    """The signatures that blkid(8) finds on a whole disk when it looks for itself; None when it could not tell."""
    ran = system.run("blkid", "--probe", "--output", "export", f"/dev/{name}")
    if ran.status == NOTHING_FOUND:
        return ()
    values = dict(line.split("=", 1) for line in ran.output.splitlines() if "=" in line)
    found = [Signature(values["TYPE"], values.get("USAGE", "filesystem"))] if "TYPE" in values else []
    found += [Signature(values["PTTYPE"], "partition table")] if "PTTYPE" in values else []
    return tuple(found) or None
