"""Which PCI functions are there? (sysfs, Documentation/ABI/testing/sysfs-bus-pci)"""

from __future__ import annotations

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.facts import Link, PciFunction
from nvstreamd.hardware.system import System

DEVICES = "sys/bus/pci/devices"
STANDARD_BARS = 6


def path_of(address: PciAddress, attribute: str = "") -> str:
    """An attribute of a function, or its directory."""
    return f"{DEVICES}/{address}/{attribute}".rstrip("/")


def functions(system: System) -> tuple[PciFunction, ...]:
    """Every function, by address."""
    found = []
    for name in system.names(DEVICES):
        try:
            found.append(function(system, PciAddress.parse(name)))
        except ValueError:
            continue
    return tuple(sorted(found, key=lambda each: each.address))


def function(system: System, address: PciAddress) -> PciFunction:
    """One function, as it is now."""
    def read(attribute: str) -> str | None:
        return system.read(path_of(address, attribute))

    override = read("driver_override")
    return PciFunction(
        address=address, vendor=_number(read("vendor")) or 0, device=_number(read("device")) or 0,
        class_code=_number(read("class")) or 0, driver=system.link(path_of(address, "driver")),
        driver_override=None if override in (None, "", "(null)") else override,
        iommu_group=system.link(path_of(address, "iommu_group")), numa_node=_node(read("numa_node")),
        link=_link(system, address), bars=_bars(read("resource")), power=read("power/control"),
    )


def _number(text: str | None) -> int | None:
    try:
        return int(text or "", 0)
    except ValueError:
        return None


def _node(text: str | None) -> int | None:
    node = _number(text)
    return None if node is None or node < 0 else node


def _link(system: System, address: PciAddress) -> Link | None:
    names = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")
    values = [system.read(path_of(address, name)) for name in names]
    speed, width, max_speed, max_width = (value or "" for value in values)
    return Link(speed, width, max_speed, max_width) if any(values) else None


def _bars(resource: str | None) -> tuple[int, ...]:
    """Sizes of the six BARs, 0 for those that are not there; lines are first, last and flags."""
    sizes = []
    for line in (resource or "").splitlines()[:STANDARD_BARS]:
        numbers = [_number(word) for word in line.split()]
        first, last = (*numbers, None, None)[:2]
        sizes.append(last - first + 1 if first and last and last >= first else 0)
    return tuple(sizes)
