"""Which block devices does the kernel mount or swap to, and where?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from nvstreamd.hardware.system import System

# /proc/*/mountinfo writes blanks so (proc(5)).
ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Uses:
    """`mounts` are places by device, which is "major:minor" and a path in /dev; `swaps` are names of devices."""

    mounts: Mapping[str, tuple[str, ...]]
    swaps: frozenset[str]

    def places(self, system: System, name: str) -> tuple[str, ...]:
        """Where a device is mounted. By path too: btrfs mounts under a number of its own, not the device's."""
        home = f"sys/class/block/{name}"
        mapped = system.read(f"{home}/dm/name")
        keys = [system.read(f"{home}/dev") or "", f"/dev/{name}", *([f"/dev/mapper/{mapped}"] if mapped else [])]
        return tuple(dict.fromkeys(place for key in keys for place in self.mounts.get(key, ())))


def uses(system: System) -> Uses:
    """Mounts and swap space of the moment."""
    return Uses(mounted(system), swap_devices(system))


def mounted(system: System) -> Mapping[str, tuple[str, ...]]:
    """Where each device is mounted, for us and for the first process (proc(5), mountinfo)."""
    places: dict[str, dict[str, None]] = defaultdict(dict)
    for process in ("self", "1"):
        for line in (system.read(f"proc/{process}/mountinfo") or "").splitlines():
            mount, _, behind = line.partition(" - ")
            fields, source = mount.split(), behind.split()[1:2]
            if len(fields) > 4:
                place = _plain(fields[4])
                for device in (fields[2], *map(_plain, source)):
                    places[device][place] = None
    return {device: tuple(found) for device, found in places.items()}


def swap_devices(system: System) -> frozenset[str]:
    """Names of the devices that are swapped to (proc(5), swaps)."""
    lines = (system.read("proc/swaps") or "").splitlines()[1:]
    return frozenset(line.split()[0].rpartition("/")[2] for line in lines if line.startswith("/dev/"))


def _plain(text: str) -> str:
    return ESCAPE.sub(lambda code: chr(int(code[1], 8)), text)
