"""How much memory may this process and its children take? What the machine has, and what its control groups allow.

cgroups(7): version 2 has memory.max along the whole path, version 1 memory.limit_in_bytes in a hierarchy of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = "sys/fs/cgroup"
# Version 1 writes about as much for no limit.
NO_LIMIT = 1 << 60
# A model's KV cache where nobody says how large it is to be.
KV_UNTOLD = 256 << 20


@dataclass(frozen=True, slots=True)
class Bound:
    """Something that bounds memory: the machine, or a control group. `free` could be taken now; all in bytes."""

    name: str
    limit: int
    free: int


def bounds(root: Path = Path("/")) -> list[Bound]:
    """Whatever bounds this process: never empty on Linux. `root` is where proc and sys are."""
    found = list(_groups(root))
    machine = _table(root / "proc/meminfo")
    if "MemTotal:" in machine:
        total = machine["MemTotal:"] << 10
        found.append(Bound("this machine", total, machine.get("MemAvailable:", machine["MemTotal:"]) << 10))
    return found


def tightest(root: Path = Path("/")) -> Bound | None:
    """The bound that leaves least, None where nothing can be read."""
    return min(bounds(root), key=lambda bound: bound.free, default=None)


def smallest(root: Path = Path("/")) -> Bound | None:
    """The bound that is smallest, however much of it is free."""
    return min(bounds(root), key=lambda bound: bound.limit, default=None)


def excess(memory: int, root: Path = Path("/")) -> str | None:
    """Why a ceiling of that many bytes is none, in a sentence; None when it can be kept."""
    bound = smallest(root)
    if bound is None or memory <= bound.limit:
        return None
    return f"`memory` is {memory >> 20} MiB, and {bound.name} has {bound.limit >> 20} MiB"


def kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for want of memory in our control groups."""
    return sum(_table(directory / name).get("oom_kill", 0) for directory, _ in _directories(root)
               for name in ("memory.events", "memory.oom_control"))


def _groups(root: Path) -> Iterator[Bound]:
    for directory, path in _directories(root):
        limit = _number(directory / "memory.max") or _number(directory / "memory.limit_in_bytes")
        used = _number(directory / "memory.current") or _number(directory / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= NO_LIMIT:
            continue
        # Pages of files go when memory is wanted, but for those that are shared memory.
        told = _table(directory / "memory.stat")
        cache = told.get("file", told.get("total_cache", 0)) - told.get("shmem", told.get("total_shmem", 0))
        yield Bound(f"control group {path}", limit, max(0, limit - used + max(0, cache)))


def _directories(root: Path) -> Iterator[tuple[Path, str]]:
    """The groups that this process is in, from the innermost to the root of its hierarchy."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base = root / CGROUPS
        elif "memory" in controllers.split(","):
            base = root / CGROUPS / "memory"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield base / part, f"/{part}" if str(part) != "." else "/"


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of a word and a number; other lines are passed over."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
