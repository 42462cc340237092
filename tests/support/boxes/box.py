"""Which machines are simulated? Their published figures, and what of them is to be had."""

from __future__ import annotations

from dataclasses import dataclass

from nvstreamd.engine.measure import HOST_ROWS
from nvstreamd.weights.flow.assignment import HostRates
from support.boxes.clock import shared

GB = 1e9
GIB = 1 << 30
# Of published bandwidths, what reads and copies get: memories, and links (a PCIe link's payload).
OF_MEMORY, OF_LINK, OF_DRIVE = 0.88, 0.86, 0.95


@dataclass(frozen=True, slots=True)
class Box:
    """A machine with one card. Rates are bytes a second as published, sizes are bytes that the engine may have.

    Up to `card_rows` rows the card multiplies weights as fast as it reads them, the processor up to `host_rows`;
    beyond, time grows with the rows.
    """

    name: str
    parts: str
    vram: int
    ram: int
    vram_rate: float
    ram_rate: float
    link_rate: float
    drive_rate: float
    card_rows: int
    host_rows: int

    @property
    def memory(self) -> float:
        """Bytes that RAM moves a second."""
        return OF_MEMORY * self.ram_rate

    @property
    def link(self) -> float:
        """Bytes that come over the link a second."""
        return OF_LINK * self.link_rate

    @property
    def drive(self) -> float:
        """Bytes that come off the drives a second."""
        return OF_DRIVE * self.drive_rate

    def card(self, rows: int) -> float:
        """Bytes of weights that the card multiplies a second."""
        return OF_MEMORY * self.vram_rate * min(1.0, self.card_rows / max(1, rows))

    def host(self, rows: int) -> float:
        """Bytes of weights that the processor multiplies a second, with RAM to itself."""
        return self.memory * min(1.0, self.host_rows / max(1, rows))

    @property
    def at_once(self) -> HostRates:
        """The same while the link is busy, as the engine measures it: both share RAM."""
        products, links = {}, {}
        for rows in HOST_ROWS:
            products[rows], links[rows] = shared((self.host(rows), self.link), self.memory)
        return HostRates(products, links)


# Vendors' pages: memory bandwidths of the cards; PCIe 3, 4 and 5 after their encoding (PCI Express Base Specification,
# section 4.2); dual-channel DDR4-3200, DDR5-5600 and DDR5-6400; drives of 3.5, 7 and 14 GB/s. 8 GiB of RAM and 1.5 GiB
# of VRAM are somebody else's. Rows: what a card's int8 products give beside its memory at a quarter of their peak, and
# a desktop processor's with AVX2 or with VNNI.
BOXES = (
    Box("3090", "PCIe 3 x8, 64 GB DDR4, one Gen3 drive", int(22.5 * GIB), 56 * GIB, 936 * GB, 51.2 * GB, 7.88 * GB,
        3.5 * GB, 9, 7),
    Box("4090", "PCIe 4 x16, 64 GB DDR5, two Gen4 drives", int(22.5 * GIB), 56 * GIB, 1008 * GB, 89.6 * GB, 31.5 * GB,
        14 * GB, 18, 16),
    Box("5090", "PCIe 5 x16, 96 GB DDR5, four Gen5 drives", int(30.5 * GIB), 88 * GIB, 1792 * GB, 102.4 * GB, 63 * GB,
        56 * GB, 13, 16),
    Box("4090 small", "PCIe 4 x16, 16 GB DDR5, two Gen4 drives", int(22.5 * GIB), 8 * GIB, 1008 * GB, 89.6 * GB,
        31.5 * GB, 14 * GB, 18, 16),
)
