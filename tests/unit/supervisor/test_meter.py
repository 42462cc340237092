"""Are tokens counted once, refused when they are spent, and remembered over a restart until the day is over?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nvstreamd.config import QuotaConfig
from nvstreamd.errors import QuotaExceeded
from nvstreamd.supervisor.meter import Meter

UID = 1000
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Time:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def clock(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def meter(tmp_path: Path, time: Time) -> Callable[[], Meter]:
    """An earlier or a later daemon's."""

    def make() -> Meter:
        made = Meter(tmp_path / "state/usage.json", time.now, time.clock)
        made.open()
        return made

    return make


def test_a_days_tokens_outlive_the_daemon_and_end_with_the_day(meter: Callable[[], Meter], time: Time) -> None:
    quota = QuotaConfig(tokens_per_day=100)
    first = meter()
    first.charge(UID, 60, quota)
    first.check(UID, quota)
    first.save(at_once=True)
    second = meter()
    assert second.today(UID) == 60
    second.charge(UID, 40, quota)
    with pytest.raises(QuotaExceeded) as refused:
        second.check(UID, quota)
    assert refused.value.field == "tokens_per_day" and "2026-11-29 00:00 UTC" in refused.value.hint
    assert refused.value.retry_seconds == 12 * 3600
    time.seconds += 12 * 3600
    second.check(UID, quota)
    assert second.today(UID) == 0


def test_a_minutes_tokens_come_back_steadily_and_the_refusal_says_when(meter: Callable[[], Meter], time: Time) -> None:
    quota, counter = QuotaConfig(tokens_per_minute=60), meter()
    counter.check(UID, quota)
    counter.charge(UID, 90, quota)
    with pytest.raises(QuotaExceeded) as refused:
        counter.check(UID, quota)
    assert refused.value.field == "tokens_per_minute"
    assert refused.value.retry_seconds == pytest.approx(31)
    counter.check(UID + 1, quota)
    time.seconds += 31
    counter.check(UID, quota)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"day": "2026-11-28", "tokens": {"x": 1}}', "\0" * 10,
                                     '{"day": "2026-11-28", "tokens": [1]}',
                                     '{"day": "2026-11-27", "tokens": {"1": 5}}'])
def test_a_file_that_is_none_of_today_counts_nothing(meter: Callable[[], Meter], tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/usage.json").write_text(content)
    assert meter().today(1) == 0


def test_nothing_is_written_before_something_was_counted(meter: Callable[[], Meter], tmp_path: Path) -> None:
    counter = meter()
    counter.save(at_once=True)
    assert not (tmp_path / "state").exists()
