"""How many tokens has a user had in this minute and on this day? Days, in UTC, are kept over restarts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nvstreamd.config import QuotaConfig
from nvstreamd.errors import QuotaExceeded

log = logging.getLogger(__name__)

MINUTE = 60.0
SAVE_SECONDS = 5.0


@dataclass(slots=True)
class _Bucket:
    """Tokens that may still be had in this minute; it fills steadily, and may be overdrawn by what was under way."""

    level: float
    at: float

    def filled(self, per_minute: int, now: float) -> float:
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / MINUTE)
        self.at = now
        return self.level


class Meter:
    """Counts tokens by uid. `file` has the day's; `now` is the time of day, `clock` runs steadily."""

    def __init__(self, file: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC),
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.file = file
        self._now = now
        self._clock = clock
        self._minutes: dict[int, _Bucket] = {}
        self._day, self._day_ends = "", datetime.min.replace(tzinfo=UTC)
        self._days: dict[int, int] = {}
        self._saved_at, self._is_dirty = clock(), False

    def open(self) -> None:
        """Reads what an earlier daemon counted today. A file that cannot be read counts nothing; the log says so."""
        now = self._now()
        self._day, self._day_ends = f"{now:%Y-%m-%d}", _midnight_after(now)
        try:
            kept = json.loads(self.file.read_text())
            if kept["day"] == self._day:
                self._days = {int(uid): int(tokens) for uid, tokens in kept["tokens"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("%s: what users had today is not known: %s", self.file, type(error).__name__)

    @property
    def uids(self) -> set[int]:
        """Users who had any today."""
        return set(self._days)

    def today(self, uid: int) -> int:
        """Tokens that a user had today."""
        self._turn_day()
        return self._days.get(uid, 0)

    def this_minute(self, uid: int, quota: QuotaConfig) -> int:
        """Tokens that a user with a limit a minute had of it."""
        if quota.tokens_per_minute is None:
            return 0
        return round(quota.tokens_per_minute - self._bucket(uid, quota.tokens_per_minute).level)

    def charge(self, uid: int, tokens: int, quota: QuotaConfig) -> None:
        """Counts tokens."""
        self._turn_day()
        self._days[uid] = self._days.get(uid, 0) + tokens
        self._is_dirty = True
        if quota.tokens_per_minute is not None:
            self._bucket(uid, quota.tokens_per_minute).level -= tokens

    def check(self, uid: int, quota: QuotaConfig) -> None:
        """Raises QuotaExceeded, saying which limit it is and until when, when a user has had what they may."""
        if quota.tokens_per_day is not None and self.today(uid) >= quota.tokens_per_day:
            midnight = self._day_ends
            raise QuotaExceeded(f"you had {self.today(uid)} tokens today, {quota.tokens_per_day} are yours",
                                f"come back after {midnight:%Y-%m-%d %H:%M} UTC", field="tokens_per_day",
                                retry_seconds=(midnight - self._now()).total_seconds())
        if quota.tokens_per_minute is not None:
            level = self._bucket(uid, quota.tokens_per_minute).level
            if level < 1:
                seconds = (1 - level) * MINUTE / quota.tokens_per_minute
                raise QuotaExceeded(f"you had the {quota.tokens_per_minute} tokens a minute that are yours",
                                    f"come back in {seconds:.0f} s", field="tokens_per_minute", retry_seconds=seconds)

    def save(self, at_once: bool = False) -> None:
        """Writes the day's counts now and then; `at_once` when the daemon ends."""
        if not self._is_dirty or (not at_once and self._clock() - self._saved_at < SAVE_SECONDS):
            return
        self._saved_at, self._is_dirty = self._clock(), False
        tokens = {str(uid): count for uid, count in sorted(self._days.items())}
        scratch = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            scratch.write_text(json.dumps({"day": self._day, "tokens": tokens}))
            scratch.replace(self.file)
        except OSError as error:
            log.error("%s: what users had today is not kept: %s", self.file, error.strerror)

    def _bucket(self, uid: int, per_minute: int) -> _Bucket:
        now = self._clock()
        bucket = self._minutes.setdefault(uid, _Bucket(per_minute, now))
        bucket.filled(per_minute, now)
        return bucket

    def _turn_day(self) -> None:
        """Begins another day, if one has begun. Called for every token: it compares two times, and formats none."""
        now = self._now()
        if now < self._day_ends:
            return
        day, self._day_ends = f"{now:%Y-%m-%d}", _midnight_after(now)
        if day != self._day:
            self._day, self._days, self._is_dirty = day, {}, True


def _midnight_after(now: datetime) -> datetime:
    return (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
