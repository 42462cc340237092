"""May a drive be driven by our own queues? Pure: facts in, checks out.

What switches an IOMMU on: Documentation/admin-guide/kernel-parameters.txt (intel_iommu, amd_iommu, iommu).
"""

from __future__ import annotations

from collections.abc import Sequence

from nvdma.types import UNTRANSLATED
from nvstreamd.doctor.host import Host
from nvstreamd.doctor.kernel import Presence
from nvstreamd.doctor.ownership import Ownership
from nvstreamd.doctor.report import Check, Reason
from nvstreamd.hardware.changes import NVSTREAM, VFIO
from nvstreamd.hardware.eligibility import OTHER_DRIVE, Refusal, refusals
from nvstreamd.hardware.facts import NvmeController

VFIO_MODULES = ("vfio_pci", "vfio_iommu_type1")
SWITCHED_OFF = ("intel_iommu=off", "amd_iommu=off", "iommu=off")
OUR_DRIVERS = (VFIO, NVSTREAM)
AS_ROOT = "sudo nvstreamd doctor"
# What only root can find out.
UNASKED = frozenset({"unknown_use", "unknown_content"})
# What follows from another driver having the function.
FOLLOWING = frozenset({"not_named", "no_namespace"})
COMMAND_LINE = ("in /etc/default/grub, then `update-grub` (Fedora: `grub2-mkconfig -o /boot/grub2/grub.cfg`) and "
                "restart")


def drive_checks(host: Host, ownership: Ownership) -> tuple[Check, ...]:
    """Everything that driving a drive needs, in the order in which it is put right."""
    modules = () if is_without_iommu(host, ownership) else tuple(vfio_module(host, name) for name in VFIO_MODULES)
    return (iommu(host, ownership), *modules, our_module(host, ownership), journal(ownership), drives(host, ownership))


def is_iommu_at_work(host: Host) -> bool:
    """True when the kernel has an IOMMU and has put functions into groups."""
    return host.machine.has_iommu and bool(host.groups)


def is_without_iommu(host: Host, ownership: Ownership) -> bool:
    """True when no IOMMU is at work, and the configuration wants drives to be used all the same."""
    return ownership.policy.unsafe_noiommu and not is_iommu_at_work(host)


def iommu(host: Host, ownership: Ownership) -> Check:
    """The check that an IOMMU keeps a drive from memory that is not ours."""
    if is_iommu_at_work(host):
        return Check("iommu", f"at work: {', '.join(host.iommus)}, {len(host.groups)} groups")
    found = f"{len(host.iommus)} in /sys/class/iommu, {len(host.groups)} groups in /sys/kernel/iommu_groups"
    if is_without_iommu(host, ownership):
        return Check("iommu", found, notes=(Reason(f"drives are used without an IOMMU: {UNTRANSLATED}",
                                                   _switch_on(host)),))
    return Check("iommu", found, (Reason("no IOMMU is at work", _switch_on(host)),))


def _switch_on(host: Host) -> str:
    """The one thing that is in the way, as far as it can be told."""
    off = [word for word in host.kernel.command_line if word in SWITCHED_OFF]
    tables, vendor = host.firmware.tables, host.firmware.vendor
    if off:
        return f"take {' and '.join(off)} out of GRUB_CMDLINE_LINUX {COMMAND_LINE}"
    if "DMAR" in tables and any(word.startswith("intel_iommu=on") for word in host.kernel.command_line):
        return "use a kernel with CONFIG_INTEL_IOMMU, see `dmesg | grep DMAR` for why this one leaves VT-d off"
    if "DMAR" in tables:
        return f"the firmware has VT-d on: add intel_iommu=on to GRUB_CMDLINE_LINUX {COMMAND_LINE}"
    if "IVRS" in tables:
        return "the firmware has AMD-Vi on: use a kernel with CONFIG_AMD_IOMMU, see `dmesg | grep AMD-Vi` for why not"
    if host.firmware.is_virtual:
        return ("this is a virtual machine: give it an IOMMU (QEMU: -machine q35 -device "
                "intel-iommu,intremap=on,caching-mode=on) and intel_iommu=on on the kernel's command line")
    if vendor == "GenuineIntel":
        return ("enable VT-d in the firmware (also named Intel Virtualization Technology for Directed I/O; under "
                f"Advanced, CPU or System Agent), and add intel_iommu=on to GRUB_CMDLINE_LINUX {COMMAND_LINE}")
    if vendor == "AuthenticAMD":
        return ("set IOMMU to Enabled in the firmware, not to Auto (also named AMD-Vi; under AMD CBS, NBIO or North "
                "Bridge), and restart")
    return ("switch the IOMMU on in the firmware (VT-d, AMD-Vi, SMMU) and, for Intel, intel_iommu=on on the kernel's "
            "command line")


def vfio_module(host: Host, name: str) -> Check:
    """The check that the kernel can hand functions to processes."""
    presence, written = host.kernel.modules[name], name if name == "vfio_iommu_type1" else name.replace("_", "-")
    reasons: tuple[Reason, ...] = ()
    release = host.kernel.release or "$(uname -r)"
    if presence is Presence.ABSENT:
        reasons = (Reason(f"the kernel {release} has no {written}",
                          f"apt-get install linux-modules-extra-{release} (Ubuntu) or linux-image-amd64 (Debian; its "
                          f"cloud kernels lack it), or build one with CONFIG_{name.upper()}=m"),)
    if presence is Presence.UNKNOWN:
        reasons = (Reason(f"whether the kernel has {written} cannot be told: /lib/modules/{release} is not here",
                          "run this on the host, not in a container, or `modprobe "
                          f"{written}` and run it again"),)
    return Check(written, presence.value, reasons)


def our_module(host: Host, ownership: Ownership) -> Check:
    """The module nvstream, which matters where no IOMMU is at work."""
    presence = host.kernel.modules["nvstream"]
    found = presence.value
    if presence not in (Presence.LOADED, Presence.INSTALLED) and host.kernel.dkms:
        found = f"with DKMS ({', '.join(host.kernel.dkms)}), not built for this kernel"
    if is_iommu_at_work(host):
        return Check("nvstream", found)
    is_there = presence in (Presence.LOADED, Presence.INSTALLED)
    if is_without_iommu(host, ownership):
        why = Reason(f"without an IOMMU our module nvstream holds the memory, and it is {found}",
                     _get_module(host))
        return Check("nvstream", found, () if is_there else (why,))
    allow = "unsafe_noiommu = true in the configuration, and see docs/administrator.md, Drives"
    note = Reason(f"the alternative without an IOMMU is our module nvstream ({found}); whoever drives a drive can then "
                  "read and write all of this machine's memory", allow if is_there else f"{_get_module(host)}; {allow}")
    return Check("nvstream", found, notes=(note,))


def _get_module(host: Host) -> str:
    release = host.kernel.release or "$(uname -r)"
    if host.kernel.dkms:
        remedy = f"apt-get install linux-headers-{release} && dkms autoinstall -k {release}"
    else:
        remedy = f"apt-get install dkms linux-headers-{release}, then install nvstreamd's package (make deb) again"
    if host.machine.secure_boot or host.machine.lockdown != "none":
        remedy += "; the kernel wants it signed: mokutil --import /var/lib/dkms/mok.pub, and restart"
    return remedy


def journal(ownership: Ownership) -> Check:
    """The check that it is known which drives are claimed."""
    if ownership.unread is not None:
        return Check("journal", "cannot be read", (ownership.unread,))
    return Check("journal", f"{len(ownership.claimed)} drives claimed")


def usable(host: Host, ownership: Ownership) -> tuple[NvmeController, ...]:
    """Drives that are claimed in a group of their own, or may be claimed as far as the caller can see."""
    return tuple(each for each in host.machine.controllers
                 if not _obstacles(each, host, ownership) and not _is_unasked(each, host, ownership))


def drives(host: Host, ownership: Ownership) -> Check:
    """The check that there is a drive for us; when there is none, why not, drive by drive."""
    found = host.machine.controllers
    if not found:
        where = "NVMe drive" if host.has_pci else "PCI device at all"
        remedy = "build one in, or `modprobe nvme`" if host.has_pci else "run this on the host, with its /sys"
        return Check("drives", "none", (Reason(f"the kernel shows no {where}", remedy),))
    words = "; ".join(_in_words(each, host, ownership) for each in found)
    free = usable(host, ownership)
    if free:
        claim = Reason("no drive is claimed yet", f"nvstreamd claim {free[0].serial}")
        return Check("drives", words, notes=() if ownership.claimed else (claim,))
    reasons = [_refused(each, host, ownership) for each in found]
    if any(_is_unasked(each, host, ownership) for each in found):
        reasons.insert(0, Reason("without root it cannot be read whether drives are in use, what they carry, and "
                                 "which are claimed", AS_ROOT))
    return Check("drives", words, tuple(reason for reason in reasons if reason))


def _obstacles(controller: NvmeController, host: Host, ownership: Ownership) -> tuple[Refusal, ...]:
    """The refusals that stand against a drive itself and are certain."""
    # Where no IOMMU is at work at all, that is told once, not of every drive.
    every = [each for each in refusals(controller, host.machine, ownership.policy)
             if each.code != "no_iommu" or is_iommu_at_work(host)]
    if controller.address in ownership.claimed:
        return tuple(each for each in every if each.code == "group")
    if controller.function.driver not in ("nvme", None):
        every = [each for each in every if each.code not in FOLLOWING]
        if controller.function.driver in OUR_DRIVERS and not host.process.is_root:
            every = [each for each in every if each.code != "other_driver"]
    hopeless = tuple(each for each in every if each.remedy == OTHER_DRIVE)
    return hopeless or tuple(each for each in every if host.process.is_root or each.code not in UNASKED)


def _is_unasked(controller: NvmeController, host: Host, ownership: Ownership) -> bool:
    """True when root could say more of it than the caller."""
    if host.process.is_root or controller.address in ownership.claimed:
        return False
    every = refusals(controller, host.machine, ownership.policy)
    return controller.function.driver in OUR_DRIVERS or any(each.code in UNASKED for each in every)


def _refused(controller: NvmeController, host: Host, ownership: Ownership) -> Reason | None:
    obstacles = _obstacles(controller, host, ownership)
    if not obstacles:
        return None
    why = "; ".join(each.reason for each in obstacles)
    return Reason(f"{_name(controller, ownership)}: {why}", "; ".join(_remedies(controller, obstacles)))


def _remedies(controller: NvmeController, obstacles: Sequence[Refusal]) -> dict[str, None]:
    def exact(refusal: Refusal) -> str:
        if refusal.code == "not_named" and controller.serial:
            return (f'if it is to spare, add a [[drives]] entry with serial = "{controller.serial}" to the '
                    "configuration")
        return refusal.remedy

    return dict.fromkeys(exact(each) for each in obstacles)


def _in_words(controller: NvmeController, host: Host, ownership: Ownership) -> str:
    name, obstacles = _name(controller, ownership), _obstacles(controller, host, ownership)
    if obstacles:
        return f"{name} may not be used: {'; '.join(each.reason for each in obstacles)}"
    if _is_unasked(controller, host, ownership):
        return f"{name}: only root can tell"
    return f"{name} is claimed" if controller.address in ownership.claimed else f"{name} may be claimed"


def _name(controller: NvmeController, ownership: Ownership) -> str:
    serial = ownership.claimed.get(controller.address) or controller.serial
    return f"{controller.address} ({serial or 'serial unknown'})"
