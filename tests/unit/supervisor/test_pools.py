"""Can one user, or any number of them, take what there is and leave nothing for whoever comes?"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.errors import QuotaExceeded
from nvstreamd.supervisor.pools import Pool

ALONE = 64


def take_all(pool: Pool, uid: int) -> int:
    for taken in range(10 * ALONE):
        try:
            pool.take(uid)
        except QuotaExceeded:
            return taken
    raise AssertionError("there is no bound")


def test_a_user_alone_gets_what_is_promised_and_another_finds_room() -> None:
    pool = Pool("places", ALONE, "wait")
    assert take_all(pool, 1) == ALONE
    assert take_all(pool, 2) >= ALONE // 2


@given(users=st.integers(1, 6))
@settings(deadline=None, derandomize=True)
def test_when_several_take_all_they_can_the_next_finds_a_place(users: int) -> None:
    pool = Pool("places", ALONE, "wait")
    for uid in range(users):
        take_all(pool, uid)
    pool.take(users + 1)


def test_what_comes_back_goes_to_those_who_have_less() -> None:
    pool = Pool("places", ALONE, "wait")
    first = [pool.take(1) for _ in range(ALONE)]
    for uid in range(2, 10):
        with suppress(QuotaExceeded):
            while True:
                pool.take(uid)
    for give_back in first[:8]:
        give_back()
    with pytest.raises(QuotaExceeded):
        pool.take(1)
    pool.take(10)


def test_what_is_given_back_twice_counts_once() -> None:
    pool = Pool("places", 2, "wait")
    give_back = pool.take(1)
    pool.take(1)
    give_back()
    give_back()
    assert pool.taken(1) == 1
    assert take_all(pool, 1) == 1


def test_more_than_there_is_is_refused_and_takes_nothing() -> None:
    pool = Pool("bytes", 100, "send less")
    with pytest.raises(QuotaExceeded, match="0 bytes are yours"):
        pool.take(1, 201)
    pool.take(1, 100)
    assert pool.uids == {1}
