"""Is there something left for whoever comes, however many came before and kept all that they got?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvstreamd.errors import QuotaExceeded
from nvstreamd.supervisor.pools import Pool

ALONE = 256


def take_all(pool: Pool, uid: int) -> int:
    """How much a user gets who takes one after the other, and gives none back."""
    before = pool.taken(uid)
    while True:
        try:
            pool.take(uid)
        except QuotaExceeded:
            return pool.taken(uid) - before


def test_one_user_gets_what_is_theirs_alone_and_leaves_as_much() -> None:
    pool = Pool("calls", ALONE, "")
    assert take_all(pool, 1) == ALONE
    assert take_all(pool, 2) == ALONE // 2


@pytest.mark.parametrize("others", [1, 5, 10, 30])
def test_whoever_comes_after_many_who_kept_all_they_got_finds_room(others: int) -> None:
    """The eleventh user was refused every call for as long as ten others held theirs open."""
    pool = Pool("calls", ALONE, "")
    for uid in range(others):
        take_all(pool, uid)
    assert take_all(pool, 1000) >= 4


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200)), max_size=200))
def test_there_is_never_more_and_what_is_given_back_twice_counts_once(wishes: list[tuple[int, int]]) -> None:
    pool, given_back = Pool("calls", ALONE, ""), []
    for uid, amount in wishes:
        try:
            given_back.append(pool.take(uid, amount))
        except QuotaExceeded:
            continue
        assert pool.taken(uid) <= ALONE
        assert sum(map(pool.taken, pool.uids)) <= 2 * ALONE + ALONE // 2
    for give_back in given_back * 2:
        give_back()
    assert not pool.uids and take_all(pool, 7) == ALONE
