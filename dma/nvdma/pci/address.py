"""Which PCIe function is meant? Domain, bus, device and function, as the kernel writes them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PATTERN = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """A function's place, as in 0000:01:00.0."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError when `text` is no such address."""
        match = PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:40]!r} is no PCI address such as 0000:01:00.0")
        return cls(*(int(part, 16) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


def driver_of(address: PciAddress, devices: Path = Path("/sys/bus/pci/devices")) -> str:
    """The name of the driver that has the function; "no driver" when none has, or it is not there."""
    link = devices / str(address) / "driver"
    return os.path.basename(os.readlink(link)) if link.exists() else "no driver"
