"""How does a drive keep one rate? A cgroup of the bench's own, with a ceiling on what it reads from that drive.

Virtual drives allow bursts and then fall to a fraction: figures taken on them say more about the minute than about the
code. Under a ceiling below the slowest rate both sides of a ratio meet the same drive. It is the same device, the same
path and the same kernel; only the block layer lets requests through at a steady rate (blkio.throttle, or io.max).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOTS = {1: Path("/sys/fs/cgroup/blkio"), 2: Path("/sys/fs/cgroup")}
CEILINGS = {1: ("blkio.throttle.read_bps_device", "{device} {rate}"), 2: ("io.max", "{device} rbps={rate}")}


class NoCap(RuntimeError):
    """The drive cannot be held at a rate here; the text says why."""


def drive_of(path: Path) -> Path:
    """The whole drive that a file lies on, in sysfs. Raises NoCap when no block device is below it."""
    device = path.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not node.exists():
        raise NoCap(f"{path} lies on no block device")
    return node.resolve().parent if (node / "partition").exists() else node.resolve()


class Idle:
    """Whether a drive has been read from of late: true once nothing was for `seconds`. Ask it again and again."""

    def __init__(self, path: Path, seconds: float = 0.5) -> None:
        self._stat = drive_of(path) / "stat"
        self._seconds = seconds
        self._sectors, self._since = -1, 0.0

    def __call__(self) -> bool:
        """True: idle. The third field of a drive's stat counts the sectors read."""
        sectors, now = int(self._stat.read_text().split()[2]), time.monotonic()
        if sectors != self._sectors:
            self._sectors, self._since = sectors, now
        return now - self._since >= self._seconds


def _group_root() -> tuple[int, Path]:
    if (ROOTS[1] / CEILINGS[1][0]).exists():
        return 1, ROOTS[1]
    control = ROOTS[2] / "cgroup.subtree_control"
    if control.exists() and "io" in control.read_text().split():
        return 2, ROOTS[2]
    raise NoCap("no cgroup with a block controller is at hand")


@contextmanager
def capped(path: Path, rate: int) -> Iterator[None]:
    """This process, and what it starts, reads at most `rate` bytes a second from the drive below `path`.

    Raises NoCap. Leaves the group behind only while a process in it has not ended.
    """
    version, root = _group_root()
    group = root / f"nvstream-bench-drive-{os.getpid()}"
    name, ceiling = CEILINGS[version]
    device = (drive_of(path) / "dev").read_text().strip()
    try:
        group.mkdir()
        (group / name).write_text(ceiling.format(device=device, rate=rate))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise NoCap(f"no block cgroup can be made here: {error}") from error
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
