"""How fast may one user go? As fast as they like for a while, then at a rate that leaves the others theirs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

MOST_KNOWN = 4096


@dataclass(slots=True)
class _Level:
    """The units that may be taken at once, as of a moment; below nothing they are owed."""

    left: float
    at: float


class Pace:
    """A token bucket for each user: `burst` units at once, `rate` units a second after that. Waits, refuses nothing."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._levels: dict[int, _Level] = {}

    async def take(self, uid: int, amount: float = 1) -> None:
        """Returns when the user may go on after having taken `amount`."""
        seconds = self.owed(uid, amount, time.monotonic())
        if seconds > 0:
            await asyncio.sleep(seconds)

    def owed(self, uid: int, amount: float, now: float) -> float:
        """Takes, and says how many seconds of waiting that costs."""
        level = self._levels.get(uid)
        if level is None:
            self._forget_full(now)
            level = self._levels[uid] = _Level(self.burst, now)
        level.left = min(self.burst, level.left + (now - level.at) * self.rate) - amount
        level.at = now
        return max(0.0, -level.left / self.rate)

    def _forget_full(self, now: float) -> None:
        """Users who owe nothing are as if they had never come."""
        if len(self._levels) >= MOST_KNOWN:
            self._levels = {uid: level for uid, level in self._levels.items()
                            if level.left + (now - level.at) * self.rate < self.burst}
