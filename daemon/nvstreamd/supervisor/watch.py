"""When is an engine frozen? When it gives no sign of life, or its work none of moving, for longer than it may. Pure.

Only time counts in which this process was awake too: a machine that was suspended, or stopped as a whole, froze nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvstreamd.supervisor.reports import Beat

TICK_SECONDS = 1.0
# A tick that comes later than this came late because of us.
LONGEST_TICK = 2.0
QUIET_SECONDS = 30.0
LONGEST_PASS = 1e9
EXPECTED_PASSES = 10
# An engine that starts reads its tokenizer before it can say anything.
FIRST_SIGN_SECONDS = 120.0
# Seconds after which `status` says so, and health NOT_SERVING.
NOTICE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stall:
    """For how long an engine has been stuck, how long it may be, in seconds, and what it was that did not come."""

    seconds: float
    limit: float
    what: str

    @property
    def is_frozen(self) -> bool:
        """True when the engine is to be replaced."""
        return self.seconds > self.limit

    @property
    def is_noticed(self) -> bool:
        """True when users are to be told."""
        return self.seconds > max(NOTICE_SECONDS, self.limit / 3)


class Watch:
    """All that was seen of one engine process. Seconds are of time awake."""

    def __init__(self) -> None:
        self.pass_seconds = 0.0
        self.peak_bytes = 0
        self._quiet = 0.0
        self._still = 0.0
        self._steps = -1
        self._has_spoken = False
        self._last_tick: float | None = None

    def heard(self, beat: Beat | None) -> None:
        """Any report came; a beat says whether work moves as well."""
        self._quiet, self._has_spoken = 0.0, True
        if beat is not None:
            # An engine may say anything: what is no time is none.
            self.pass_seconds = beat.pass_seconds if 0 <= beat.pass_seconds < LONGEST_PASS else 0.0
            self.peak_bytes = beat.peak_bytes
            if not beat.work or beat.steps != self._steps:
                self._steps, self._still = beat.steps, 0.0

    def tick(self, now: float, expected_pass: float) -> Stall:
        """Counts the time since the last tick. `now` is of a clock that stands still in suspend (CLOCK_MONOTONIC)."""
        if self._last_tick is not None:
            passed = min(LONGEST_TICK, now - self._last_tick)
            self._quiet += passed
            self._still += passed
        self._last_tick = now
        limit = max(QUIET_SECONDS, EXPECTED_PASSES * expected_pass)
        if not self._has_spoken:
            return Stall(self._quiet, max(limit, FIRST_SIGN_SECONDS), "no sign of life")
        # The last beat may have come when nothing moved any more.
        if self._quiet + LONGEST_TICK >= self._still:
            return Stall(self._quiet, limit, "no sign of life")
        return Stall(self._still, limit, "no read, stage or pass that came to its end")
