"""What do NVIDIA's driver and cards say of themselves, without asking the driver to do anything?

Sources: the driver's README, chapter "The /proc/driver/nvidia Interface"; Documentation/ABI/testing/sysfs-bus-pci
(resourceN_resize). BAR1, the window into a card's memory, is the second that a function has: number 1 behind a first of
32 bits, number 2 behind one of 64 (data-centre cards since Hopper).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nvstreamd.hardware.facts import Machine, PciFunction
from nvstreamd.hardware.functions import path_of
from nvstreamd.hardware.system import System

VENDOR = 0x10DE
VERSION = re.compile(r"\b(\d{3,4})\.(\d+)(?:\.(\d+))?\b")
MODEL = re.compile(r"^Model:\s*(.+)$", re.MULTILINE)
REGISTRY = re.compile(r'^RegistryDwords:\s*"(.*)"', re.MULTILINE)
MIB = 1 << 20
# PCIe 6.2, section 7.8.6: sizes up to 2**63 bytes.
LARGEST_SIZE_BIT = 43


@dataclass(frozen=True, slots=True)
class Driver:
    """The kernel's part of the driver. `version` has three numbers."""

    version: tuple[int, int, int]
    is_open: bool

    def __str__(self) -> str:
        major, minor, patch = self.version
        flavour = "open" if self.is_open else "proprietary"
        return f"{major}.{minor:02}" + (f".{patch:02}" if patch else "") + f" ({flavour})"


@dataclass(frozen=True, slots=True)
class Card:
    """A card. `bar1` and `largest_bar1`, what resizable BAR offers, are in bytes; the latter None when nobody says."""

    function: PciFunction
    model: str | None
    bar1: int
    largest_bar1: int | None

    @property
    def name(self) -> str:
        """The card's address and model, for people."""
        return f"{self.function.address} ({self.model or 'NVIDIA'})"


@dataclass(frozen=True, slots=True)
class Nvidia:
    """`registry` has the driver's registry keys, names in lower case, or is None when they cannot be read."""

    driver: Driver | None
    registry: Mapping[str, int] | None
    cards: tuple[Card, ...]


def nvidia(system: System, machine: Machine) -> Nvidia:
    """Reads what procfs and sysfs have."""
    cards = tuple(_card(system, found) for found in machine.gpus if found.vendor == VENDOR)
    return Nvidia(_driver(machine.nvidia), _registry(system.read("proc/driver/nvidia/params")), cards)


def _driver(line: str | None) -> Driver | None:
    found = VERSION.search(line or "")
    if line is None or found is None:
        return None
    return Driver((int(found[1]), int(found[2]), int(found[3] or 0)), "Open Kernel Module" in line)


def _registry(text: str | None) -> Mapping[str, int] | None:
    """RegistryDwords is written NAME=NUMBER;NAME=NUMBER."""
    if text is None:
        return None
    keys = {}
    for pair in "".join(REGISTRY.findall(text)).split(";"):
        name, _, value = pair.partition("=")
        try:
            keys[name.strip().lower()] = int(value, 0)
        except ValueError:
            continue
    return MappingProxyType(keys)


def _card(system: System, function: PciFunction) -> Card:
    said = MODEL.search(system.read(f"proc/driver/nvidia/gpus/{function.address}/information") or "")
    numbers = [number for number, nbytes in enumerate(function.bars) if nbytes]
    number = numbers[1] if len(numbers) > 1 else None
    return Card(function, said[1].strip() if said else None, 0 if number is None else function.bars[number],
                _largest(system.read(path_of(function.address, f"resource{number}_resize"))))


def _largest(bitmap: str | None) -> int | None:
    """Bit n stands for 2**n MiB."""
    try:
        bits = int(bitmap or "", 16)
    except ValueError:
        return None
    return MIB << bits.bit_length() - 1 if 0 < bits.bit_length() <= LARGEST_SIZE_BIT + 1 else None
