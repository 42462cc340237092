"""What is changed on the machine to take a drive? Each change is an object that says so, makes it and takes it back.

All of them are made before the first is applied, with what they will restore inside, so that a journal can hold them.
Applying and reverting look at the machine first: either can be repeated after a crash at any point, and reverting what
was never applied changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from nvdma.pci.address import PciAddress
from nvstreamd.errors import HardwareError
from nvstreamd.hardware.drivers import bind, bound_to, driver_of, is_loaded, is_there, unbind, unless_gone, until, write
from nvstreamd.hardware.drives import disks_of, nodes_of
from nvstreamd.hardware.facts import PciFunction
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.system import System

VFIO, NVSTREAM = "vfio-pci", "nvstream"
MODULE_HINTS = {
    VFIO: "is the kernel built with VFIO_PCI? Does lockdown refuse modules?",
    NVSTREAM: "is it built for this kernel (`dkms status nvstream`)? Does lockdown want it signed?",
}

log = logging.getLogger(__name__)


class Change(Protocol):
    """One change. `kind` names its class in a journal."""

    kind: ClassVar[str]

    def describe(self) -> str:
        """The change that applying makes, in a line."""

    def describe_revert(self) -> str:
        """The change that reverting makes, in a line."""

    def apply(self, system: System) -> None:
        """Makes the change, and sees that it is made. Raises HardwareError."""

    def revert(self, system: System) -> None:
        """Takes the change back, and sees that it is. Raises HardwareError."""


@dataclass(frozen=True, slots=True)
class LoadModule:
    """The driver that hands functions to processes; unloaded again if it was not there before."""

    kind: ClassVar[str] = "load_module"
    module: str
    was_loaded: bool

    def describe(self) -> str:
        """The `modprobe` command in a line, or that the module is there already."""
        return f"{self.module} is loaded already" if self.was_loaded else f"modprobe {self.module}"

    def describe_revert(self) -> str:
        """The `modprobe -r` command in a line, or that the module stays."""
        return f"{self.module} stays" if self.was_loaded else f"modprobe -r {self.module}, if nothing else uses it"

    def apply(self, system: System) -> None:
        """Loads the module unless it is loaded. Raises HardwareError when modprobe fails."""
        if is_loaded(system, self.module):
            return
        ran = system.run("modprobe", self.module)
        if ran.status:
            raise HardwareError(f"modprobe {self.module} failed: {ran.output.strip()}",
                                MODULE_HINTS.get(self.module, "see `dmesg`"))

    def revert(self, system: System) -> None:
        """Unloads the module if it was not there before. Somebody else may use it by now: then it stays."""
        if self.was_loaded or not is_loaded(system, self.module):
            return
        # A driver's functions do not keep its module loaded: modprobe would take them from whoever bound them.
        users = bound_to(system, self.module)
        if users:
            log.info("%s stays loaded: it has %s", self.module, ", ".join(users))
            return
        ran = system.run("modprobe", "-r", self.module)
        if ran.status:
            log.warning("%s stays loaded: %s", self.module, ran.output.strip())


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """An attribute of the function in sysfs; an empty value is written as a line end, as the kernel wants it."""

    kind: ClassVar[str] = "set_attribute"
    address: str
    attribute: str
    value: str
    before: str

    def describe(self) -> str:
        """The attribute, with the values from and to which it goes, in a line."""
        return f"{self.attribute} of {self.address}: {self.before or '(none)'} -> {self.value or '(none)'}"

    def describe_revert(self) -> str:
        """The attribute, with the values from and to which it goes back, in a line."""
        return f"{self.attribute} of {self.address}: {self.value or '(none)'} -> {self.before or '(none)'}"

    def apply(self, system: System) -> None:
        """Writes the value and waits until the function shows it. Raises HardwareError."""
        self._set(system, self.value)

    def revert(self, system: System) -> None:
        """Writes the earlier value back, unless the drive was pulled out. Raises HardwareError."""
        if is_there(system, self.address):
            with unless_gone(system, self.address):
                self._set(system, self.before)

    def _set(self, system: System, value: str) -> None:
        path = path_of(PciAddress.parse(self.address), self.attribute)
        if _attribute(system, path) == value:
            return
        write(system, path, value or "\n")
        until(lambda: _attribute(system, path) == value or not is_there(system, self.address),
               f"{self.attribute} of {self.address} to be {value or 'empty'}")


@dataclass(frozen=True, slots=True)
class Unbind:
    """Takes the function from the driver that has it, and gives it back to that driver. No driver: nothing to do.

    `disks` is how many the driver had made of it: given back means that they can be mounted again.
    """

    kind: ClassVar[str] = "unbind"
    address: str
    driver: str
    disks: int = 0

    def describe(self) -> str:
        """The function and the driver that loses it, in a line, or that it has none."""
        return f"unbind {self.address} from {self.driver}" if self.driver else f"{self.address} has no driver"

    def describe_revert(self) -> str:
        """The function and the driver that gets it back, in a line, or that it had none."""
        return f"bind {self.address} to {self.driver}" if self.driver else f"{self.address} stays without a driver"

    def apply(self, system: System) -> None:
        """Unbinds the function from its driver. Raises HardwareError, also when a disk came into use meanwhile."""
        if not self.driver or driver_of(system, self.address) != self.driver:
            return
        used = [name for name in disks_of(system, PciAddress.parse(self.address)) if system.is_held(name)]
        if used:
            raise HardwareError(f"{', '.join(used)} came into use after {self.address} was found free",
                                "see `nvstreamd drives`, free it and claim again")
        unbind(system, self.address, self.driver)

    def revert(self, system: System) -> None:
        """Gives the function back to its driver, if it is there, and waits for its disks. Raises HardwareError."""
        if self.driver and is_there(system, self.address):
            with unless_gone(system, self.address):
                bind(system, self.address, self.driver)
                self._await_disks(system)

    def _await_disks(self, system: System) -> None:
        """The driver looks for namespaces after it has the function. That none comes is the drive's fault, not ours."""
        try:
            until(lambda: self._disks(system) >= self.disks, f"the disks of {self.address}")
        except HardwareError as error:
            log.warning("%s; %d of %d came", error.message, self._disks(system), self.disks)

    def _disks(self, system: System) -> int:
        """How many can be opened by now, or all when the drive is gone."""
        if not is_there(system, self.address):
            return self.disks
        return len(nodes_of(system, PciAddress.parse(self.address)))


@dataclass(frozen=True, slots=True)
class Bind:
    """Gives the function to another driver, which `driver_override` names by now."""

    kind: ClassVar[str] = "bind"
    address: str
    driver: str

    def describe(self) -> str:
        """The function and the driver that gets it, in a line."""
        return f"bind {self.address} to {self.driver}"

    def describe_revert(self) -> str:
        """The function, the driver that loses it and what that waits for, in a line."""
        return f"unbind {self.address} from {self.driver}, once no process has it open"

    def apply(self, system: System) -> None:
        """Binds the function to `driver`, unless that has it. Raises HardwareError."""
        bind(system, self.address, self.driver)

    def revert(self, system: System) -> None:
        """Unbinds the function once no process has it open. Raises HardwareError, also when that takes too long."""
        if driver_of(system, self.address) != self.driver:
            return
        # The kernel would wait for VFIO's last user inside the write, and could not be told to stop; from our module's
        # user it would take the drive.
        node = self._node(system)
        until(lambda: not system.is_open(node), f"the process that drives {self.address} to end")
        with unless_gone(system, self.address):
            unbind(system, self.address, self.driver)

    def _node(self, system: System) -> str:
        """The node that one process at a time may open."""
        if self.driver == NVSTREAM:
            return f"dev/nvstream/{self.address}"
        group = system.link(path_of(PciAddress.parse(self.address), "iommu_group"))
        return f"dev/vfio/{group}"


KINDS: dict[str, type[LoadModule] | type[SetAttribute] | type[Unbind] | type[Bind]] = {
    change.kind: change for change in (LoadModule, SetAttribute, Unbind, Bind)
}


def driver_for(function: PciFunction) -> str:
    """The driver that lets a process have a function: ours where no IOMMU is before it, which VFIO would ask for."""
    return NVSTREAM if function.iommu_group is None else VFIO


def changes_to_make(system: System, function: PciFunction, *, loaded_for_us: bool = False) -> tuple[Change, ...]:
    """The changes by which a claim takes a function, in order.

    `loaded_for_us`: that the module is loaded is another claim's doing, and the last of them unloads it.
    """
    address, driver = str(function.address), driver_for(function)
    # A function that sleeps answers nothing; vfio-pci would put it to sleep whenever nobody has it open. Without power
    # management (CONFIG_PM) there is nothing to set.
    awake = () if function.power is None else (SetAttribute(address, "power/control", "on", function.power),)
    return (
        LoadModule(driver, is_loaded(system, driver) and not loaded_for_us),
        *awake,
        Unbind(address, function.driver or "", len(nodes_of(system, function.address))),
        SetAttribute(address, "driver_override", driver, function.driver_override or ""),
        Bind(address, driver),
    )


def to_json(change: Change) -> dict[str, Any]:
    """A change as a journal has it."""
    return {"kind": change.kind, **asdict(change)}  # type: ignore[call-overload]


def from_json(fields: dict[str, Any]) -> Change:
    """The change that a journal has. Raises ValueError, KeyError or TypeError when it is none."""
    values = dict(fields)
    kind = KINDS[values.pop("kind")]
    change = kind(**values)
    if "address" in values:
        PciAddress.parse(values["address"])
    return change


def _attribute(system: System, path: str) -> str:
    value = system.read(path) or ""
    return "" if value == "(null)" else value
