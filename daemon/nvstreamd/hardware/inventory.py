"""What is this machine? All facts, taken at one moment."""

from __future__ import annotations

from nvstreamd.hardware.drives import controllers
from nvstreamd.hardware.facts import Machine
from nvstreamd.hardware.functions import functions
from nvstreamd.hardware.system import System

# What takes or shares the devices that this daemon is about.
MODULES = ("nvidia", "nvidia_uvm", "nvme", "nvstream", "vfio", "vfio_iommu_type1", "vfio_pci")
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def take(system: System) -> Machine:
    """Reads the machine; what cannot be read is None in the facts, never an error."""
    found = functions(system)
    return Machine(
        functions=found, controllers=controllers(system, found), has_iommu=bool(system.names("sys/class/iommu")),
        kernel=system.read("proc/sys/kernel/osrelease") or "", boot_id=boot_id(system), lockdown=_lockdown(system),
        secure_boot=_secure_boot(system), nvidia=_first_line(system.read("proc/driver/nvidia/version")),
        modules=tuple(name for name in MODULES if system.exists(f"sys/module/{name}")),
    )


def boot_id(system: System) -> str:
    """A number that is another one after each boot."""
    return system.read("proc/sys/kernel/random/boot_id") or ""


def _lockdown(system: System) -> str:
    """The mode in brackets, as in "none [integrity] confidentiality"."""
    modes = (system.read("sys/kernel/security/lockdown") or "").split()
    return next((mode.strip("[]") for mode in modes if mode.startswith("[")), "none")


def _secure_boot(system: System) -> bool | None:
    """The variable's last byte, behind four of attributes; None without UEFI."""
    variable = system.read_bytes(SECURE_BOOT)
    return bool(variable[-1]) if variable else None


def _first_line(text: str | None) -> str | None:
    return text.splitlines()[0] if text else None
