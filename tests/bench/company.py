"""Did anything else compute while a figure was taken? The share of the processors that other programs had.

It matters more than it looks: threads that wait for each other by spinning, as those of llama.cpp do, lose far more
than the share that was taken from them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

QUIET = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat behind the name: the parent, and ticks in user mode (proc(5)).
PARENT, USER = 1, 11


def _machine_seconds() -> float:
    """Seconds that programs computed, and that the host took away, on all processors since the start."""
    user, nice, _, _, _, _, _, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + steal) / TICKS


def _own_seconds() -> float:
    """Seconds that this process and all below it computed."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[PARENT])
        seconds[int(path.parent.name)] = int(fields[USER]) / TICKS
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds[process] for process in family)


class Company:
    """Watches from when it is made. Processes of ours that end meanwhile count as others."""

    def __init__(self) -> None:
        self._start, self._others = time.monotonic(), _machine_seconds() - _own_seconds()

    def share(self) -> float:
        """How much of all processors others had since: 0 none, 1 all."""
        others = _machine_seconds() - _own_seconds() - self._others
        return max(0.0, others / (time.monotonic() - self._start) / (os.cpu_count() or 1))
