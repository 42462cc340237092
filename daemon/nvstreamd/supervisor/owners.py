"""Whose share does a caller use? That of the account which may become them, where somebody may: subuid(5).

Most systems give every account 65,536 uids for its containers. Counted one by one they would be as many users: the
prefix cache keeps them apart, shares and quotas do not. What a caller may do depends on their own uid alone.
"""

from __future__ import annotations

import pwd
import time
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path

SUBORDINATE = Path("/etc/subuid")
FRESH_SECONDS = 10.0


class Owners:
    """The ranges of `file`, as they are now or were a moment ago."""

    def __init__(self, file: Path = SUBORDINATE) -> None:
        self._file = file
        self._read_at = float("-inf")
        self._stamp: tuple[int, int] | None = None
        # [first, end of the range, owner], sorted.
        self._ranges: list[tuple[int, int, int]] = []

    def of(self, uid: int) -> int:
        """The uid whose share a caller of that uid uses."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._read_at = time.monotonic()
            self._refresh()
        found = bisect_right(self._ranges, (uid, 1 << 64, 0)) - 1
        if found >= 0:
            first, end, owner = self._ranges[found]
            if first <= uid < end:
                return owner
        return uid

    def _refresh(self) -> None:
        try:
            facts = self._file.stat()
            stamp = facts.st_mtime_ns, facts.st_size
            if stamp != self._stamp:
                self._ranges = sorted(filter(None, map(_range, self._file.read_text(errors="replace").splitlines())))
                self._stamp = stamp
        except OSError:
            self._ranges, self._stamp = [], None


def _range(line: str) -> tuple[int, int, int] | None:
    """name:first:count, where the name may be a uid; None for what is none."""
    name, *numbers = line.strip().split(":")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None
    first, count = map(int, numbers)
    with suppress(KeyError):
        return first, first + count, int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    return None
