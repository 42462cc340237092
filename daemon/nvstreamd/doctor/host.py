"""Which facts does a diagnosis need beside the inventory's? The kernel's, the firmware's, NVIDIA's and the caller's."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from nvdma.pci.address import PciAddress
from nvstreamd.doctor.kernel import Kernel, kernel
from nvstreamd.doctor.nvidia import Nvidia, nvidia
from nvstreamd.doctor.toolkit import LIBRARIES, NOTHING, Toolkit, toolkit
from nvstreamd.hardware.acs import Acs, parse
from nvstreamd.hardware.facts import NVME_CLASS, Machine
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.system import System

# capability(7): whoever has it is not bound by RLIMIT_MEMLOCK.
CAP_IPC_LOCK = 14
# With which firmware tells of an IOMMU: Intel's, AMD's and Arm's tables (ACPI 6.5, section 5.2.6).
TABLES = ("DMAR", "IVRS", "IORT")
PACKAGE = "kvikio"
LIBRARY = re.compile(r"libcufile\.so")
P2P_MODE = re.compile(r'^\s*"use_pci_p2pdma"\s*:\s*true', re.MULTILINE)
MOST_BRIDGES = 32


@dataclass(frozen=True, slots=True)
class Process:
    """Who asks. `memlock` is how many bytes it may lock, None without a limit; `packages` could be imported.

    `toolkit` is what its Python has of CUDA.
    """

    uid: int
    memlock: int | None
    packages: frozenset[str]
    toolkit: Toolkit = NOTHING

    @property
    def is_root(self) -> bool:
        """True when it may read everything."""
        return self.uid == 0


@dataclass(frozen=True, slots=True)
class Firmware:
    """`tables` are those of TABLES that it has; `vendor` is the processor's, "" where it does not say."""

    tables: frozenset[str]
    vendor: str
    is_virtual: bool


@dataclass(frozen=True, slots=True)
class CuFile:
    """`libraries` are files found; `p2p_mode`: /etc/cufile.json asks for the kernel's P2PDMA."""

    libraries: tuple[str, ...]
    p2p_mode: bool


@dataclass(frozen=True, slots=True)
class Host:
    """All facts. `iommus` and `groups` are names; `upstream` has the bridges above drives and cards, nearest first.

    `acs` is of those bridges whose configuration could be read.
    """

    machine: Machine
    process: Process
    kernel: Kernel
    firmware: Firmware
    nvidia: Nvidia
    cufile: CuFile
    iommus: tuple[str, ...]
    groups: frozenset[str]
    io_uring_disabled: str | None
    has_pci: bool
    upstream: Mapping[PciAddress, tuple[PciAddress, ...]]
    acs: Mapping[PciAddress, Acs]


def host(system: System, process: Process) -> Host:
    """Takes the inventory, and reads the rest; what cannot be read is None or empty, never an error."""
    machine = take(system)
    groups = {function.iommu_group for function in machine.functions if function.iommu_group}
    upstream = _upstream(system, machine)
    return Host(
        machine=machine, process=process, kernel=kernel(system, machine.kernel), firmware=_firmware(system),
        nvidia=nvidia(system, machine), cufile=_cufile(system), iommus=tuple(system.names("sys/class/iommu")),
        groups=frozenset(groups) | frozenset(system.names("sys/kernel/iommu_groups")),
        io_uring_disabled=system.read("proc/sys/kernel/io_uring_disabled"), has_pci=bool(machine.functions),
        upstream=upstream, acs=_acs(system, upstream),
    )


def process(system: System) -> Process:
    """The one that asks."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", system.read("proc/self/status") or "", re.MULTILINE)
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_free = limit == resource.RLIM_INFINITY or bool(found and int(found[1], 16) >> CAP_IPC_LOCK & 1)
    packages = frozenset({PACKAGE} if find_spec(PACKAGE) else ())
    return Process(os.geteuid(), None if is_free else limit, packages, toolkit(system))


def _firmware(system: System) -> Firmware:
    processor = system.read("proc/cpuinfo") or ""
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", processor, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", processor, re.MULTILINE)
    tables = frozenset(name for name in TABLES if system.exists(f"sys/firmware/acpi/tables/{name}"))
    return Firmware(tables, vendor[1] if vendor else "", flags is not None and "hypervisor" in flags[1].split())


def _cufile(system: System) -> CuFile:
    found = tuple(f"/{place}/{name}" for place in LIBRARIES for name in system.names(place) if LIBRARY.match(name))
    return CuFile(found, P2P_MODE.search(system.read("etc/cufile.json") or "") is not None)


def _upstream(system: System, machine: Machine) -> Mapping[PciAddress, tuple[PciAddress, ...]]:
    bridges: dict[tuple[int, int], PciAddress] = {}
    for bridge in machine.functions:
        number = system.read(path_of(bridge.address, "secondary_bus_number")) if bridge.is_bridge else None
        if number is not None and number.isdecimal():
            bridges[bridge.address.domain, int(number)] = bridge.address
    ends = [each for each in machine.functions if each.class_code == NVME_CLASS or each in machine.gpus]
    return MappingProxyType({each.address: _above(each.address, bridges) for each in ends})


def _acs(system: System, upstream: Mapping[PciAddress, tuple[PciAddress, ...]]) -> Mapping[PciAddress, Acs]:
    bridges = dict.fromkeys(bridge for above in upstream.values() for bridge in above)
    found = {bridge: parse(system.read_bytes(path_of(bridge, "config"))) for bridge in bridges}
    return MappingProxyType({bridge: acs for bridge, acs in found.items() if acs is not None})


def _above(address: PciAddress, bridges: Mapping[tuple[int, int], PciAddress]) -> tuple[PciAddress, ...]:
    found: list[PciAddress] = []
    bridge = bridges.get((address.domain, address.bus))
    while bridge is not None and bridge not in found and len(found) < MOST_BRIDGES:
        found.append(bridge)
        bridge = bridges.get((bridge.domain, bridge.bus))
    return tuple(found)
