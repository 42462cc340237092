"""Could a drive, or cuFile, reach a card's memory? Pure: facts in, checks out.

NVIDIA's registry keys and what the kernel needs: docs.nvidia.com, "GDS Support for NVMe Drives Using Linux PCI P2PDMA
Support". Which driver resolves I/O memory on which kernel: kernel-open/nvidia/os-mlock.c, nv_follow_pfn.
"""

from __future__ import annotations

from nvdma.pci.address import PciAddress
from nvstreamd.doctor.host import PACKAGE, Host
from nvstreamd.doctor.kernel import Presence
from nvstreamd.doctor.nvidia import Card
from nvstreamd.doctor.report import Check, Reason
from nvstreamd.hardware.facts import NvmeController

MIB, GIB = 1 << 20, 1 << 30
# What a card shows without resizable BAR.
SMALL_BAR1 = 256 * MIB
STATIC_BAR1, UNCACHED_BAR1 = "RMForceStaticBar1", "RmForceDisableIomapWC"
# Driver releases, major numbers: with the key, without it, and publishing pages to the kernel's P2PDMA.
STATIC_SINCE, STATIC_ALONE_SINCE, P2PDMA_SINCE = 565, 580, 595
# The first minor numbers that resolve I/O memory on current kernels; every branch from the last on does.
RESOLVES = {535: (247, 0), 550: (163, 0), 570: (133, 7)}
RESOLVES_SINCE = 575
# The kernel that took away what older drivers use, and the one that takes P2PDMA pages in O_DIRECT.
FOLLOW_GONE, P2PDMA_KERNEL = (6, 12), (6, 2)
OPEN_DRIVER = "apt-get install nvidia-open (NVIDIA's repository; Ubuntu: nvidia-driver-NNN-open), and restart"
OPTIONS_FILE = "/etc/modprobe.d/nvstream.conf"
RESTART = "`update-initramfs -u` and restart"
P2PDMA_KERNELS = "use a kernel with CONFIG_PCI_P2PDMA=y: Ubuntu's have it, Debian 12's do not"
FULL_BAR = ("enable Above 4G Decoding and Re-Size BAR Support in the firmware (also named Resizable BAR or Smart "
            "Access Memory), switch CSM off, and restart")


def gpu(host: Host) -> Check:
    """The check that there is an NVIDIA card."""
    cards = host.nvidia.cards
    if cards:
        return Check("gpu", ", ".join(card.name for card in cards))
    found = f"{len(host.machine.gpus)} display controllers, none of NVIDIA"
    remedy = "build one in, or read into memory: `uring`"
    return Check("gpu", found, (Reason("there is no NVIDIA GPU", remedy),))


def driver(host: Host) -> Check:
    """The check that NVIDIA's driver runs, has a card, and is of the flavour that others can work with."""
    known, cards = host.nvidia.driver, host.nvidia.cards
    if not cards:
        return Check("driver", str(known) if known else "not loaded")
    reasons = unbound(host)
    if known is None:
        reasons.append(Reason("NVIDIA's driver is not loaded: there is no /proc/driver/nvidia/version", OPEN_DRIVER))
    elif not known.is_open:
        reasons.append(Reason(f"the driver {known} lets nobody else reach a card's memory", OPEN_DRIVER))
    return Check("driver", str(known) if known else "not loaded", tuple(reasons))


def unbound(host: Host) -> list[Reason]:
    """Cards that another driver has, or none."""
    return [Reason(f"driver {card.function.driver or 'none'} has {card.name}, not nvidia", "modprobe nvidia; "
                   "blacklist what has it instead (nouveau: `blacklist nouveau` in /etc/modprobe.d), and restart")
            for card in host.nvidia.cards if card.function.driver != "nvidia"]


def bar1(host: Host) -> Check:
    """The check that the window into a card's memory is as large as it can be."""
    words = ", ".join(f"{card.name}: {_size(card.bar1)}{_offered(card)}" for card in host.nvidia.cards)
    small = [card for card in host.nvidia.cards if card.bar1 < (card.largest_bar1 or SMALL_BAR1 + 1)]
    return Check("bar1", words or "no card", tuple(
        Reason(f"BAR1 of {card.name} is {_size(card.bar1)}{_offered(card)}: too small for all of its memory", FULL_BAR)
        for card in small))


def _offered(card: Card) -> str:
    """The card's memory is in no file: what resizable BAR offers at most is at least as large."""
    return f" of {_size(card.largest_bar1)}" if card.largest_bar1 else ""


def static_bar1(host: Host) -> Check:
    """The check that the driver maps all of a card's memory at one place in BAR1."""
    known, is_set = host.nvidia.driver, _is_set(host, STATIC_BAR1)
    if known is None or not host.nvidia.cards:
        return Check("static BAR1", "no driver or no card to ask")
    major = known.version[0]
    found = f"driver {known}, {STATIC_BAR1} {'set' if is_set else 'not set'}"
    if major < STATIC_SINCE:
        return Check("static BAR1", found, (Reason(f"the driver {known} has no static BAR1",
                                                   f"use {STATIC_SINCE} or later: {OPEN_DRIVER}"),))
    if major < STATIC_ALONE_SINCE and not is_set:
        return Check("static BAR1", found, (Reason(f"static BAR1 is not asked for ({STATIC_BAR1})",
                                                   _options(STATIC_BAR1)),))
    return Check("static BAR1", found)


def peers(host: Host, usable: tuple[NvmeController, ...]) -> Check:
    """Where a drive's writes to a card cross: a switch below the processor, or the processor."""
    words, notes = [], []
    for controller in usable:
        for card in host.nvidia.cards:
            drive, other = controller.address, card.function.address
            meeting = _meeting(host, drive, other)
            words.append(f"{drive} and {other} meet at {meeting or 'the processor'}")
            notes += [_far(drive, other)] if meeting is None else _detours(host, drive, other, meeting)
    return Check("PCIe path", "; ".join(words) or "no drive and card to look at", notes=tuple(dict.fromkeys(notes)))


def _meeting(host: Host, drive: PciAddress, card: PciAddress) -> PciAddress | None:
    above = host.upstream.get(card, ())
    return next((bridge for bridge in host.upstream.get(drive, ()) if bridge in above), None)


def _far(drive: PciAddress, card: PciAddress) -> Reason:
    return Reason(f"what {drive} writes to {card} crosses the processor, which may be slow or not be allowed",
                  "put both below one PCIe switch, if the bandwidth is not what the links give")


def _detours(host: Host, drive: PciAddress, card: PciAddress, meeting: PciAddress) -> list[Reason]:
    """The switch's ports on the way from the drive to the meeting, if they do not let it cross there."""
    above = host.upstream[drive]
    port = above[max(0, above.index(meeting) - 1)]
    acs = host.acs.get(port)
    if acs is None:
        what = f"whether port {port} lets {drive} reach {card} directly cannot be read (ACS)"
        return [Reason(what, "run this as root")]
    if not acs.redirects:
        return []
    return [Reason(f"port {port} sends what {drive} writes to {card} up to the processor and back (ACS request "
                   "redirect)", "with an IOMMU leave it so: it keeps them in groups of their own; for p2pdma, which "
                   f"does without one, `pci=disable_acs_redir={port}` on the kernel's command line")]


def io_memory(host: Host) -> Check:
    """The check that the driver can register a drive's doorbells for a card (cuMemHostRegister, IOMEMORY)."""
    known, release = host.nvidia.driver, host.kernel.release
    if known is None or not host.nvidia.cards:
        return Check("IoMemory", "no driver or no card to ask")
    major, *minor = known.version
    # A branch that is not listed, and is older than those that all do, never learnt it.
    resolves = major >= RESOLVES_SINCE or (major in RESOLVES and tuple(minor) >= RESOLVES[major])
    found = f"driver {known}, kernel {release}"
    if not known.is_open:
        return Check("IoMemory", found, (Reason(f"the driver {known} registers no I/O memory", OPEN_DRIVER),))
    if not resolves and not host.kernel.is_older(*FOLLOW_GONE):
        return Check("IoMemory", found, (Reason(f"the driver {known} registers no I/O memory on kernel {release}",
                                                f"use {RESOLVES_SINCE} or later: {OPEN_DRIVER}"),))
    return Check("IoMemory", found)


def p2pdma_kernel(host: Host) -> Check:
    """The check that the kernel takes a card's pages in an O_DIRECT read."""
    release, options = host.kernel.release or "$(uname -r)", host.kernel.options
    reasons = []
    if host.kernel.is_older(*P2PDMA_KERNEL):
        reasons.append(Reason(f"kernel {release} is older than 6.2", "use Linux 6.2 or later"))
    if options is None:
        reasons.append(Reason("whether the kernel has PCI_P2PDMA cannot be told: /proc/config.gz, /boot/config-"
                              f"{release} and /lib/modules/{release}/config are not here or may not be read",
                              "run this as root on the host, or `modprobe configs` and run it again"))
    elif options.get("CONFIG_PCI_P2PDMA") != "y":
        reasons.append(Reason(f"kernel {release} was built without CONFIG_PCI_P2PDMA", P2PDMA_KERNELS))
    known = "unknown" if options is None else options.get("CONFIG_PCI_P2PDMA", "not set")
    return Check("kernel", f"{release}, CONFIG_PCI_P2PDMA {known}", tuple(reasons))


def p2pdma_driver(host: Host) -> Check:
    """The check that the driver publishes a card's pages: its release, and two registry keys."""
    known, registry = host.nvidia.driver, host.nvidia.registry
    if known is None or not host.nvidia.cards:
        return Check("registry", "no driver or no card to ask")
    reasons = []
    if known.version[0] < P2PDMA_SINCE:
        reasons.append(Reason(f"the driver {known} publishes no pages to the kernel",
                              f"use {P2PDMA_SINCE} or later: {OPEN_DRIVER}"))
    missing = [key for key in (STATIC_BAR1, UNCACHED_BAR1) if not _is_set(host, key)]
    if registry is None:
        reasons.append(Reason("the driver's registry keys cannot be read: /proc/driver/nvidia/params",
                              "modprobe nvidia, and run this on the host"))
    elif missing:
        reasons.append(Reason(f"registry keys of the driver are not set: {', '.join(missing)}",
                              _options(STATIC_BAR1, UNCACHED_BAR1)))
    words = "unread" if registry is None else f"not set: {', '.join(missing)}" if missing else "both keys set"
    return Check("registry", f"driver {known}, {words}", tuple(reasons))


def mounted_drive(host: Host) -> Check:
    """The check that the kernel's own driver has a drive, from which files are read."""
    found = [str(each.address) for each in host.machine.controllers if each.function.driver == "nvme"]
    if found:
        return Check("drives", f"with the kernel's driver: {', '.join(found)}")
    none = "no NVMe drive is with the kernel's driver"
    return Check("drives", none, (Reason(none, "give one back: nvstreamd release SERIAL" if host.machine.controllers
                                         else "build one in, or `modprobe nvme`"),))


def cufile_library(host: Host) -> Check:
    """The check that cuFile could be called."""
    found = (*host.cufile.libraries, *sorted(host.process.packages))
    if found:
        return Check("libcufile", ", ".join(found))
    return Check("libcufile", "none", (Reason(
        "neither libcufile nor kvikio is installed", f"pip install {PACKAGE}-cu12, or apt-get install "
        "libcufile-12-9 (NVIDIA's repository)"),))


def cufile_path(host: Host) -> Check:
    """The check that cuFile goes to the card directly: without module or P2P mode it copies, and does not say so."""
    module, is_p2p = host.kernel.modules["nvidia_fs"], host.cufile.p2p_mode
    found = f"nvidia-fs {module.value}, use_pci_p2pdma {'on' if is_p2p else 'off'} in /etc/cufile.json"
    reasons = [Reason(f"NVIDIA does not list {card.name} for GPUDirect Storage: cuFile would copy through memory and "
                      "not say so", "use a card of the data-centre or RTX PRO series, or `uring`")
               for card in host.nvidia.cards if card.model is not None and "GeForce" in card.model]
    if module is not Presence.LOADED and not is_p2p:
        load = "modprobe nvidia-fs" if module is Presence.INSTALLED else (
            "apt-get install nvidia-fs-dkms (NVIDIA's repository), then modprobe nvidia-fs")
        reasons.append(Reason(f"the module nvidia-fs is {module.value} and P2P mode is off: cuFile would copy through "
                              "memory and not say so",
                              f'{load}; or "use_pci_p2pdma": true in /etc/cufile.json with all that p2pdma needs'))
    return Check("cuFile mode", found, tuple(reasons))


def _is_set(host: Host, key: str) -> bool:
    return bool((host.nvidia.registry or {}).get(key.lower()))


def _options(*keys: str) -> str:
    words = ";".join(f"{key}=1" for key in keys)
    return f"write `options nvidia NVreg_RegistryDwords=\"{words}\"` to {OPTIONS_FILE}, then {RESTART}"


def _size(nbytes: int | None) -> str:
    if not nbytes:
        return "0"
    return f"{nbytes / GIB:g} GiB" if nbytes >= GIB else f"{nbytes / MIB:g} MiB"
