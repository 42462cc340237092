"""Which NVMe controllers are there, and what does the kernel keep on their namespaces?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from nvstreamd.hardware.facts import NVME_CLASS, BlockDevice, NvmeController, PciFunction, Signature
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.system import System

SECTOR = 512  # the unit of sysfs' sizes, whatever the device's blocks are
NAMESPACE = re.compile(r"nvme\d+n\d+")
# One of several paths to a namespace that a subsystem of more controllers shares.
SHARED_PATH = re.compile(r"nvme\d+c\d+n\d+")
NOTHING_FOUND = 2
# /proc/*/mountinfo writes blanks so (proc(5)).
ESCAPE = re.compile(r"\\([0-7]{3})")

Uses = Mapping[str, tuple[str, ...]]


def controllers(system: System, found: tuple[PciFunction, ...]) -> tuple[NvmeController, ...]:
    """The controllers among the machine's functions."""
    mounts, swaps = mounted(system), swap_devices(system)
    return tuple(_controller(system, each, mounts, swaps) for each in found if each.class_code == NVME_CLASS)


def _controller(system: System, function: PciFunction, mounts: Uses, swaps: frozenset[str]) -> NvmeController:
    names = system.names(path_of(function.address, "nvme"))
    name = names[0] if names else None
    home = path_of(function.address, f"nvme/{name}")
    entries = system.names(home) if name else []

    def read(attribute: str) -> str | None:
        return system.read(f"{home}/{attribute}") if name else None

    disks = tuple(_disk(system, each, mounts, swaps) for each in entries if NAMESPACE.fullmatch(each))
    return NvmeController(function, name, read("model"), read("serial"), read("firmware_rev"), disks,
                          any(SHARED_PATH.fullmatch(each) for each in entries))


def _disk(system: System, name: str, mounts: Uses, swaps: frozenset[str]) -> BlockDevice:
    home = f"sys/class/block/{name}"
    partitions = tuple(_device(system, each, mounts, swaps) for each in system.names(home)
                       if system.exists(f"{home}/{each}/partition"))
    whole = _device(system, name, mounts, swaps)
    block_bytes = system.read(f"{home}/queue/logical_block_size") or ""
    return BlockDevice(whole.name, whole.nbytes, whole.mounts, whole.holders, whole.is_swap, whole.held, partitions,
                       signatures(system, name), int(block_bytes) if block_bytes.isdecimal() else None)


def _device(system: System, name: str, mounts: Uses, swaps: frozenset[str]) -> BlockDevice:
    home = f"sys/class/block/{name}"
    size, number = system.read(f"{home}/size") or "", system.read(f"{home}/dev") or ""
    return BlockDevice(name, int(size) * SECTOR if size.isdecimal() else 0, mounts.get(number, ()),
                       tuple(system.names(f"{home}/holders")), name in swaps, system.is_held(name))


def mounted(system: System) -> Uses:
    """Where each device is mounted, {major:minor: places}, for us and for the first process (proc(5), mountinfo)."""
    places: dict[str, list[str]] = defaultdict(list)
    for process in ("self", "1"):
        for line in (system.read(f"proc/{process}/mountinfo") or "").splitlines():
            fields = line.split()
            if len(fields) > 4:
                place = ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
                if place not in places[fields[2]]:
                    places[fields[2]].append(place)
    return {device: tuple(found) for device, found in places.items()}


def swap_devices(system: System) -> frozenset[str]:
    """Names of the devices that are swapped to (proc(5), swaps)."""
    lines = (system.read("proc/swaps") or "").splitlines()[1:]
    return frozenset(line.split()[0].rpartition("/")[2] for line in lines if line.startswith("/dev/"))


def signatures(system: System, name: str) -> tuple[Signature, ...] | None:
    """What blkid(8) finds on a whole disk when it looks for itself; None when it could not look."""
    ran = system.run("blkid", "--probe", "--output", "export", f"/dev/{name}")
    if ran.status == NOTHING_FOUND:
        return ()
    values = dict(line.split("=", 1) for line in ran.output.splitlines() if "=" in line)
    found = [Signature(values["TYPE"], values.get("USAGE", "filesystem"))] if "TYPE" in values else []
    found += [Signature(values["PTTYPE"], "partition table")] if "PTTYPE" in values else []
    return tuple(found) or None
