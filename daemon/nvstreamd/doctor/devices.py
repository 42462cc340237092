"""Which devices could multiply here beside the processor, why not, and what would help? Pure: facts in, verdicts out.

NVIDIA's numbers of devices: its open kernel modules' README, "Compatible GPUs"; releases of drivers: docs.nvidia.com,
"CUDA Compatibility".
"""

from __future__ import annotations

from nvstreamd.doctor.gpu_checks import OPEN_DRIVER, unbound
from nvstreamd.doctor.host import Host
from nvstreamd.doctor.nvidia import Card
from nvstreamd.doctor.report import Check, Reason, Verdict
from nvstreamd.doctor.toolkit import BINDINGS, CUPY, NVRTC

# The first driver of each CUDA release. An older release's packages work with a newer driver.
DRIVERS = {13: 580, 12: 525}
# Of compute capability 8.0, the first are GA100's, which lie below the last of those before (TU116's and TU117's).
AMPERE_FIRST, AMPERE = range(0x2080, 0x2100), 0x2200
CPU_ALONE = "the CPU's kernels multiply everywhere"
UVM = "nvidia_uvm"


def gpu(host: Host) -> Verdict:
    """A card of NVIDIA's needs a driver, and packages that an engine loads: the daemon itself loads none of them."""
    of_a_card = (_driver(host), _cupy(host), _nvrtc(host), _uvm(host)) if host.nvidia.cards else ()
    return Verdict("gpu", (_card(host), *of_a_card),
                   ", ".join(card.name for card in host.nvidia.cards if _is_new(card)))


def verdicts(host: Host) -> tuple[Verdict, ...]:
    """One for each kind of device."""
    return (gpu(host),)


def _is_new(card: Card) -> bool:
    return card.function.device >= AMPERE or card.function.device in AMPERE_FIRST


def _card(host: Host) -> Check:
    cards = host.nvidia.cards
    words = "; ".join(f"{card.name}: {'8.0 or later' if _is_new(card) else 'before 8.0'}" for card in cards)
    found = f"compute capability by PCI device, the number itself CUDA alone tells: {words}" if cards else "none"
    if not cards:
        return Check("card", found, (Reason("there is no NVIDIA GPU to multiply on", CPU_ALONE),))
    old = tuple(Reason(f"{card.name} is of a compute capability before 8.0: it lacks what the kernels are made of",
                       f"use a card of 2020 or later (Ampere, or what came after); {CPU_ALONE}")
                for card in cards if not _is_new(card))
    return Check("card", found, notes=old) if len(old) < len(cards) else Check("card", found, old)


def _driver(host: Host) -> Check:
    """Of either flavour: nobody else need reach the card's memory for this."""
    known = host.nvidia.driver
    reasons = unbound(host)
    if known is None:
        reasons.append(Reason("NVIDIA's driver is not loaded: there is no /proc/driver/nvidia/version", OPEN_DRIVER))
    oldest = min(DRIVERS.values())
    if known is not None and known.version[0] < oldest:
        reasons.append(Reason(f"the driver {known} is older than {oldest}: no CUDA release that nvstreamd works with "
                              "knows it", OPEN_DRIVER))
    return Check("driver", str(known) if known else "not loaded", tuple(reasons))


def _cupy(host: Host) -> Check:
    release, known = host.process.toolkit.cupy, host.nvidia.driver
    if release is None:
        return Check("cupy", "not installed", (Reason("cupy, which calls the card's driver, is not installed",
                                                      _install(host)),))
    found = CUPY.get(release, "cupy, for a CUDA release that it does not name")
    needed = DRIVERS.get(release, 0)
    if known is not None and known.version[0] < needed:
        return Check("cupy", found, (Reason(f"{found} needs the driver {needed} or later, this one is {known}",
                                            f"pip uninstall {found}, then {_install(host)}; or: {OPEN_DRIVER}"),))
    return Check("cupy", found)


def _nvrtc(host: Host) -> Check:
    """Kernels are compiled where the card is, by NVRTC of the release that the bindings are for."""
    toolkit = host.process.toolkit
    compilers = ", ".join(str(release) for release in sorted(toolkit.nvrtc)) or "none"
    found = f"NVRTC of CUDA {compilers}; {BINDINGS} of {toolkit.bindings or 'none'}"
    if toolkit.bindings is None:
        return Check("NVRTC", found, (Reason(f"{BINDINGS}, which calls NVRTC, is not installed", _install(host)),))
    if toolkit.bindings not in toolkit.nvrtc:
        package = NVRTC.get(toolkit.bindings, NVRTC[max(NVRTC)])
        return Check("NVRTC", found, (Reason(f"NVRTC of CUDA {toolkit.bindings}, which compiles the kernels, is not "
                                             "installed", f"{_install(host)}, or {package} alone"),))
    return Check("NVRTC", found)


def _uvm(host: Host) -> Check:
    if host.nvidia.driver is None:
        return Check("module", "no driver to ask")
    if UVM in host.machine.modules:
        return Check("module", f"{UVM} is loaded")
    return Check("module", f"{UVM} is not loaded", notes=(Reason(
        f"the module {UVM} is not loaded, without which CUDA finds no card; an engine may not load it",
        f"`systemctl start nvstreamd-card`, or `nvidia-modprobe -u -c 0` and {UVM} in a file of /etc/modules-load.d"),))


def _install(host: Host) -> str:
    """Into the environment that runs this: engines run in it, too."""
    if host.process.toolkit.packaged:
        return "apt-get install ./nvstreamd-cuda_*.deb (`make deb` builds it)"
    known = host.nvidia.driver
    release = next((each for each, first in DRIVERS.items() if known is None or known.version[0] >= first), 12)
    return f"pip install nvstreamd[cuda{release}]"
