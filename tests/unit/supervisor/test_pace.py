"""Does a user who goes fast wait for himself alone, and never for what others did?"""

from __future__ import annotations

import pytest

from nvstreamd.supervisor.pace import MOST_KNOWN, Pace


def test_a_burst_is_free_and_what_follows_has_the_rate() -> None:
    pace = Pace(rate=10, burst=5)
    assert [pace.owed(1, 1, 0.0) for _ in range(5)] == [0] * 5
    assert pace.owed(1, 1, 0.0) == pytest.approx(0.1)
    assert pace.owed(1, 1, 0.0) == pytest.approx(0.2)
    assert pace.owed(2, 5, 0.0) == 0
    # Half a second later five more were earned, of which two were owed.
    assert pace.owed(1, 3, 0.5) == 0


def test_nothing_is_saved_beyond_a_burst() -> None:
    pace = Pace(rate=10, burst=5)
    pace.owed(1, 1, 0.0)
    assert pace.owed(1, 6, 1000.0) == pytest.approx(0.1)


def test_users_who_owe_nothing_are_forgotten_and_debtors_are_not() -> None:
    pace = Pace(rate=1, burst=1)
    pace.owed(0, 10 * MOST_KNOWN, 0.0)
    for uid in range(1, MOST_KNOWN + 10):
        pace.owed(uid, 1, float(uid))
    assert len(pace._levels) <= MOST_KNOWN
    assert pace.owed(0, 1, MOST_KNOWN + 10.0) > 0
