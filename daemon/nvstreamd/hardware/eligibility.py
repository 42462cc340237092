"""May we have this drive? Pure: facts in, every reason why not out, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvstreamd.config import Config
from nvstreamd.hardware.facts import BlockDevice, Machine, NvmeController, PciFunction

SYSTEM_PLACES = ("/", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/usr", "/var", "/home")
OURS = "vfio-pci"
OTHER_DRIVE = "use another drive"
FSTAB = "/etc/fstab"


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
    """The administrator's decisions: the serial numbers of drives that may be taken.

    `unsafe_noiommu`: also drives that no IOMMU keeps from memory that is not ours.
    """

    serials: frozenset[str]
    unsafe_noiommu: bool = False


def policy_of(config: Config) -> Policy:
    """The policy in the configuration."""
    return Policy(frozenset(drive.serial for drive in config.drives), config.unsafe_noiommu)


def refusals(controller: NvmeController, machine: Machine, policy: Policy) -> tuple[Refusal, ...]:
    """Every reason against taking this drive; none: it may be taken."""
    return (*not_to_spare(controller, machine, policy), *_isolation(controller, machine, policy))


def not_to_spare(controller: NvmeController, machine: Machine, policy: Policy) -> tuple[Refusal, ...]:
    """Every reason against writing to this drive through the kernel's driver, which needs no IOMMU."""
    return (*_identity(controller, machine, policy), *_kernel_use(controller), *_content(controller))


def verdicts(machine: Machine, policy: Policy) -> tuple[tuple[NvmeController, tuple[Refusal, ...]], ...]:
    """Every controller of the machine with every reason against taking it."""
    return tuple((controller, refusals(controller, machine, policy)) for controller in machine.controllers)


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
        yield Refusal("multipath", "other controllers may lead to its namespaces as well (NVMe multipath)",
                      "use a drive with one port, or boot with nvme_core.multipath=N where it has only one")
    if not controller.namespaces and not controller.shared:
        yield Refusal("no_namespace", "the kernel shows no namespace of it", "bind it to `nvme`, or create a namespace")


def _kernel_use(controller: NvmeController) -> Iterator[Refusal]:
    for disk in controller.namespaces:
        for device in disk.parts:
            yield from _uses(device)
            if device.held and not _is_explained(device, disk):
                yield Refusal("held", f"{device.name} is in use by the kernel or opened exclusively",
                              f"see `lsof /dev/{device.name}` and `zpool status`")
            if device.held is None:
                yield Refusal("unknown_use", f"whether {device.name} is in use cannot be asked", "run this as root")


def _is_explained(device: BlockDevice, disk: BlockDevice) -> bool:
    """True when another refusal says why it is held: the kernel holds a disk with its partitions, and they with it."""
    if device is disk:
        return any(any(_uses(part)) for part in disk.parts) or any(part.held for part in disk.partitions)
    return any(_uses(device)) or any(_uses(disk))


def _uses(device: BlockDevice) -> Iterator[Refusal]:
    for place in device.mounts:
        if place in SYSTEM_PLACES:
            yield Refusal("system", f"{device.name} is mounted at {place}: this system runs from it", OTHER_DRIVE)
        else:
            yield Refusal("mounted", f"{device.name} is mounted at {place}",
                          f"unmount it and take it out of {FSTAB}: umount {place}")
    if device.is_swap:
        swap = device.holders[0] if device.holders else device.name
        yield Refusal("swap", f"{device.name} is swap space", f"take it out of {FSTAB}: swapoff /dev/{swap}")
    if device.holders:
        yield Refusal("holders", f"{device.name} is part of {', '.join(device.holders)} (md, LVM, dm-crypt)",
                      OTHER_DRIVE if _runs_system(device) else "take it out of there first")


def _content(controller: NvmeController) -> Iterator[Refusal]:
    for disk in controller.namespaces:
        # Nobody who runs from a drive shall read how to erase it.
        if any(map(_runs_system, disk.parts)):
            remedy = OTHER_DRIVE
        else:
            remedy = f"if nothing on it is needed: wipefs --all /dev/{disk.name}"
        if disk.signatures is None:
            yield Refusal("unknown_content", f"what {disk.name} carries cannot be told",
                          f"look yourself: blkid --probe /dev/{disk.name}")
        for signature in disk.signatures or ():
            yield Refusal("content", f"{disk.name} has a signature: {signature.kind} {signature.use}", remedy)
        if disk.partitions and not disk.signatures:
            yield Refusal("content", f"{disk.name} has partitions", remedy)


def _runs_system(device: BlockDevice) -> bool:
    return any(place in SYSTEM_PLACES for place in device.mounts)


def _isolation(controller: NvmeController, machine: Machine, policy: Policy) -> Iterator[Refusal]:
    function = controller.function
    if function.iommu_group is None:
        if not policy.unsafe_noiommu:
            yield Refusal("no_iommu", f"{function.address} is in no IOMMU group",
                          "switch the IOMMU on: VT-d or AMD-Vi in the firmware, and intel_iommu=on for Intel")
        return
    for other in machine.group(function):
        if other.address != function.address and not _is_harmless(other):
            yield Refusal("group", f"{other.address} is in IOMMU group {function.iommu_group} as well, and driver "
                                   f"{other.driver} holds it", "move the drive to another slot")


def _is_harmless(other: PciFunction) -> bool:
    return other.is_bridge or other.driver in (None, OURS)
