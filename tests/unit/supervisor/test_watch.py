"""Is a frozen engine told from one that works on something long, and from a machine that slept?"""

from __future__ import annotations

from nvstreamd.supervisor.reports import Beat
from nvstreamd.supervisor.watch import FIRST_SIGN_SECONDS, LONGEST_TICK, QUIET_SECONDS, Stall, Watch


def run(watch: Watch, seconds: int, beats: bool = True, work: bool = True, moves: bool = False,
        expected: float = 0.1, begin: float = 0.0) -> Stall:
    """Ticks once a second; what the last one said."""
    watch.tick(begin, expected)
    stall = None
    for second in range(1, seconds + 1):
        if beats:
            watch.heard(Beat(steps=second if moves else 1, work=work, pass_seconds=1.0))
        stall = watch.tick(begin + second, expected)
    assert stall is not None
    return stall


def test_one_that_says_nothing_is_noticed_then_frozen() -> None:
    watch = Watch()
    watch.heard(Beat())
    assert not run(watch, 9, beats=False).is_noticed
    stall = run(watch, 2, beats=False, begin=9.0)
    assert stall.is_noticed and not stall.is_frozen and "sign of life" in stall.what
    assert run(watch, int(QUIET_SECONDS) - 10, beats=False, begin=11.0).is_frozen


def test_one_that_beats_while_nothing_moves_is_frozen_too() -> None:
    stall = run(Watch(), int(QUIET_SECONDS) + 2)
    assert stall.is_frozen and "came to its end" in stall.what


def test_work_that_moves_or_none_at_all_is_no_stall() -> None:
    assert not run(Watch(), 1000, moves=True).is_noticed
    assert not run(Watch(), 1000, work=False).is_noticed


def test_passes_that_are_expected_to_be_long_may_be_long() -> None:
    assert not run(Watch(), 90, expected=10.0).is_frozen
    assert run(Watch(), 102, expected=10.0).is_frozen


def test_one_that_starts_has_longer_to_say_something() -> None:
    assert not run(Watch(), int(FIRST_SIGN_SECONDS) - 1, beats=False).is_frozen
    assert run(Watch(), int(FIRST_SIGN_SECONDS) + 2, beats=False).is_frozen


def test_time_in_which_the_daemon_slept_too_does_not_count() -> None:
    watch = Watch()
    watch.heard(None)
    watch.tick(0.0, 0.1)
    stall = watch.tick(3600.0, 0.1)
    assert stall.seconds == LONGEST_TICK and not stall.is_noticed
