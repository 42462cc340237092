"""Which driver has a function, and how does the kernel give it to another? (Documentation/ABI/testing/sysfs-bus-pci)

Every change is one write, and then looked at until it shows: what the kernel accepted may still be on its way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nvdma.pci.address import PciAddress
from nvstreamd.errors import HardwareError
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.system import System

DRIVERS = "sys/bus/pci/drivers"
EFFECT_SECONDS = 20.0
PAUSE_SECONDS = 0.01

log = logging.getLogger(__name__)


def is_loaded(system: System, module: str) -> bool:
    """True when the kernel has a module, loaded or built in."""
    return system.exists(f"sys/module/{module.replace('-', '_')}")


def is_there(system: System, address: str) -> bool:
    """True while the function is not pulled out."""
    return system.exists(path_of(PciAddress.parse(address)))


def driver_of(system: System, address: str) -> str | None:
    """The driver that has the function now."""
    return system.link(path_of(PciAddress.parse(address), "driver"))


def bound_to(system: System, driver: str) -> tuple[str, ...]:
    """Addresses of all functions that a driver has."""
    return tuple(name for name in system.names(f"{DRIVERS}/{driver}") if ":" in name)


def bind(system: System, address: str, driver: str) -> None:
    """Gives a function to a driver, unless that has it. Raises HardwareError."""
    if driver_of(system, address) == driver:
        return
    write(system, f"{DRIVERS}/{driver}/bind", address)
    until(lambda: driver_of(system, address) == driver, f"{driver} to take {address}")


def unbind(system: System, address: str, driver: str) -> None:
    """Takes a function from the driver that has it. Raises HardwareError."""
    write(system, f"{DRIVERS}/{driver}/unbind", address)
    until(lambda: driver_of(system, address) != driver, f"{driver} to let go of {address}")


def write(system: System, path: str, text: str) -> None:
    """Writes an attribute. Raises HardwareError with what the kernel said."""
    try:
        system.write(path, text)
    except OSError as error:
        raise HardwareError(f"writing {text.strip()!r} to /{path} failed: {error.strerror}",
                            "is the daemon root, and is the drive still there? See `dmesg`") from error


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what was asked of the kernel. Raises HardwareError after EFFECT_SECONDS."""
    deadline = time.monotonic() + EFFECT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise HardwareError(f"waited {EFFECT_SECONDS:g} s for {what}", "see `dmesg`, then `nvstreamd recover`")
        time.sleep(PAUSE_SECONDS)


@contextmanager
def unless_gone(system: System, address: str) -> Iterator[None]:
    """A function that is pulled out while something is taken back has nothing left to take back."""
    try:
        yield
    except HardwareError as error:
        if is_there(system, address):
            raise
        log.warning("%s was pulled out: %s", address, error.message)
