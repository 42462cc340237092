"""How is a process given less memory than the machine has? A memory cgroup of a fixed size, version 1 or 2.

A process enters before it starts, so that everything it touches counts: whoever starts it goes in, starts it, and goes
out again. Page cache counts for the group that reads it first; `drop_cached` makes a file's pages nobody's before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 30.0
MOUNTS, OWN = Path("/proc/self/mounts"), Path("/proc/self/cgroup")
LIMITS = {1: {"memory.limit_in_bytes": "{}", "memory.memsw.limit_in_bytes": "{}"},
          2: {"memory.max": "{}", "memory.swap.max": "0"}}
KILLS = {1: "memory.oom_control", 2: "memory.events"}
MOST = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}


class NoMemoryGroups(RuntimeError):
    """Memory cgroups cannot be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A cgroup of ours, and the one that we came from."""

    path: Path
    home: Path
    version: int
    limit: int

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Processes that are started inside belong to the group."""
        _move_to(self.path)
        try:
            yield
        finally:
            _move_to(self.home)

    def kills(self) -> int:
        """How many of its processes the kernel killed for want of memory."""
        lines = (self.path / KILLS[self.version]).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def most(self) -> int:
        """The bytes that it had when it had most."""
        return int((self.path / MOST[self.version]).read_text())

    def close(self) -> None:
        """Removes the group once its processes have ended."""
        deadline = time.monotonic() + DEADLINE
        while (self.path / "cgroup.procs").read_text():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {DEADLINE} s for the processes of {self.path} to end")
        self.path.rmdir()


def _move_to(group: Path) -> None:
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise NoMemoryGroups(f"no process can be moved into a memory cgroup here: {error}") from error


def _own(version: int) -> Path | None:
    """The memory cgroup of this process; None when this version has no memory controller here."""
    controllers = "memory" if version == 1 else ""
    mounted = [line.split() for line in MOUNTS.read_text().splitlines()]
    roots = [Path(at) for _, at, kind, options, *_ in mounted
             if kind == ("cgroup" if version == 1 else "cgroup2") and (version == 2 or "memory" in options.split(","))]
    paths = [path for _, names, path in (line.split(":", 2) for line in OWN.read_text().splitlines())
             if controllers in names.split(",")]
    if not roots or not paths:
        return None
    # Inside a container the path may be the host's, and the mount the container's own.
    inside = roots[0] / paths[0].lstrip("/")
    return inside if inside.exists() else roots[0]


def _parent(home: Path, version: int) -> Path | None:
    """Where groups can be made: below our own; in version 2 below the nearest one that hands the controller on."""
    if version == 1:
        return home
    for group in (home, *home.parents):
        control = group / "cgroup.subtree_control"
        if not control.exists():
            return None
        if "memory" in control.read_text().split():
            return group
    return None


@contextmanager
def memory_group(name: str, limit: int) -> Iterator[MemoryGroup]:
    """A group of `limit` bytes, page cache and all. Raises NoMemoryGroups."""
    for version in (1, 2):
        home = _own(version)
        parent = home and _parent(home, version)
        if home is None or parent is None:
            continue
        group = MemoryGroup(parent / f"nvstream-bench-{name}-{os.getpid()}", home, version, limit)
        try:
            group.path.mkdir()
        except OSError as error:
            raise NoMemoryGroups(f"no memory cgroup can be made here: {error}") from error
        try:
            for file, value in LIMITS[version].items():
                if (group.path / file).exists():
                    (group.path / file).write_text(value.format(limit))
            yield group
        finally:
            group.close()
        return
    raise NoMemoryGroups("no memory cgroup can be made here: no memory controller is at hand")


def drop_cached(path: Path) -> None:
    """Takes a file's pages out of the page cache, as far as no process maps them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
