"""May we have this drive? Pure: facts in, every reason why not out, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvstreamd.hardware.facts import BlockDevice, Machine, NvmeController, PciFunction

SYSTEM_PLACES = ("/", "/boot", "/boot/efi", "/usr", "/var", "/home")
OURS = "vfio-pci"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason: `code` for programs, a sentence and its remedy for people."""

    code: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator has decided: the serial numbers of drives that may be taken."""

    serials: frozenset[str]


def refusals(controller: NvmeController, machine: Machine, policy: Policy) -> tuple[Refusal, ...]:
    """Every reason against taking this drive; none: it may be taken."""
    return (*_identity(controller, machine, policy), *_kernel_use(controller), *_content(controller),
            *_isolation(controller, machine))


def _identity(controller: NvmeController, machine: Machine, policy: Policy) -> Iterator[Refusal]:
    serial = controller.serial
    if serial is None or serial not in policy.serials:
        yield Refusal("not_named", f"no [[drives]] entry of the configuration names serial {serial or 'unknown'}",
                      "add one, if this drive is to spare")
    same = [each for each in machine.controllers if each.serial == serial]
    if serial is not None and len(same) > 1:
        places = ", ".join(str(each.address) for each in same)
        yield Refusal("ambiguous", f"{len(same)} controllers ({places}) have serial {serial}",
                      "take one of them out: which is meant cannot be told")
    if controller.function.driver not in ("nvme", None):
        yield Refusal("other_driver", f"the driver {controller.function.driver} holds {controller.address}",
                      "end what uses it there")
    if controller.shared:
        yield Refusal("multipath", "other controllers lead to its namespaces as well", "use a drive with one port")
    if not controller.namespaces and not controller.shared:
        yield Refusal("no_namespace", "the kernel shows no namespace of it", "bind it to `nvme`, or create a namespace")


def _kernel_use(controller: NvmeController) -> Iterator[Refusal]:
    for device in (part for disk in controller.namespaces for part in disk.parts):
        explained = False
        for refusal in _uses(device):
            explained = True
            yield refusal
        if device.held and not explained:
            yield Refusal("held", f"{device.name} is in use by the kernel or opened exclusively",
                          f"see `lsof /dev/{device.name}` and `zpool status`")
        if device.held is None:
            yield Refusal("unknown_use", f"whether {device.name} is in use cannot be asked", "run this as root")


def _uses(device: BlockDevice) -> Iterator[Refusal]:
    for place in device.mounts:
        if place in SYSTEM_PLACES:
            yield Refusal("system", f"{device.name} is mounted at {place}: this system runs from it",
                          "use another drive")
        else:
            yield Refusal("mounted", f"{device.name} is mounted at {place}",
                          f"unmount it and take it out of /etc/fstab: umount {place}")
    if device.is_swap:
        yield Refusal("swap", f"{device.name} is swap space", f"swapoff /dev/{device.name}")
    if device.holders:
        yield Refusal("holders", f"{device.name} is part of {', '.join(device.holders)} (md, LVM, dm-crypt)",
                      "take it out of there first")


def _content(controller: NvmeController) -> Iterator[Refusal]:
    for disk in controller.namespaces:
        if disk.signatures is None:
            yield Refusal("unknown_content", f"what {disk.name} carries cannot be told",
                          f"look yourself: blkid --probe /dev/{disk.name}")
        for signature in disk.signatures or ():
            yield Refusal("content", f"{disk.name} carries a {signature.kind} {signature.use}",
                          f"if nothing on it is needed: wipefs --all /dev/{disk.name}")
        if disk.partitions and not disk.signatures:
            yield Refusal("content", f"{disk.name} has partitions", f"if nothing is needed: wipefs /dev/{disk.name}")


def _isolation(controller: NvmeController, machine: Machine) -> Iterator[Refusal]:
    function = controller.function
    if function.iommu_group is None:
        yield Refusal("no_iommu", f"{function.address} is in no IOMMU group",
                      "switch the IOMMU on: VT-d or AMD-Vi in the firmware, and intel_iommu=on for Intel")
        return
    for other in machine.group(function):
        if other.address != function.address and not _is_harmless(other):
            yield Refusal("group", f"{other.address} is in IOMMU group {function.iommu_group} as well, and driver "
                                   f"{other.driver} holds it", "move the drive to another slot")


def _is_harmless(other: PciFunction) -> bool:
    return other.is_bridge or other.driver in (None, OURS)
