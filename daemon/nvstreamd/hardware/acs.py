"""What does a port do with what one device below it sends to another? Access Control Services, from its configuration.

(PCI Express Base Specification 6.0: section 7.6.3 for the list of extended capabilities, 7.7.11 for this one.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIRST, LAST = 0x100, 0x1000 - 8
HEADER = struct.Struct("<I")
REGISTERS = struct.Struct("<HH")  # capability and control, behind the header
ACS_ID = 0x000D
REQUEST_REDIRECT = 1 << 2
# Without privilege the kernel shows no more of a function's configuration.
SHOWN_TO_ALL = 64


@dataclass(frozen=True, slots=True)
class Acs:
    """The two registers of a port; both 0 when it has no such capability."""

    capability: int
    control: int

    @property
    def redirects(self) -> bool:
        """True when requests from one device to another are sent up, to where the IOMMU is."""
        return bool(self.control & REQUEST_REDIRECT)


def parse(configuration: bytes | None) -> Acs | None:
    """The registers in a port's configuration space, 0 without any; None when too little of it may be read."""
    if configuration is None or len(configuration) <= SHOWN_TO_ALL:
        return None
    at, seen = FIRST, set[int]()
    while FIRST <= at <= min(LAST, len(configuration) - 8) and at not in seen:
        seen.add(at)
        (header,) = HEADER.unpack_from(configuration, at)
        if header & 0xFFFF == ACS_ID:
            return Acs(*REGISTERS.unpack_from(configuration, at + 4))
        at = header >> 20 & 0xFFC
    return Acs(0, 0)
