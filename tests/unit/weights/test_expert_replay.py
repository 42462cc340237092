"""Does the replay of expert caches count right? Cases by hand, and Belady against every way there is."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.expert_replay import BEST, POLICIES, Factory, Need, Routes, half_life, load, replay, save

SLOTS = 3
NEEDS = st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1, max_size=SLOTS)
ROUTES = st.integers(1, 2).flatmap(
    lambda layers: st.lists(st.lists(NEEDS, min_size=layers, max_size=layers), min_size=1, max_size=7))


def one_layer(*needs: str) -> Routes:
    """Passes of a model with one layer, each need as its experts' digits, each of one row."""
    return [[dict.fromkeys(map(int, need), 1)] for need in needs]


def hits(routes: Routes, slots: int, policy: str | Factory) -> int:
    return sum(replay(routes, slots, POLICIES[policy] if isinstance(policy, str) else policy).hits)


@pytest.mark.parametrize(("policy", "expected"), [
    # 0 1 2 come in; 0 again: there. 3 takes the place of 1, 1 that of 2, 2 that of 0.
    ("LRU", 1),
    # 3 takes the place of 1, which was needed longest ago of those needed once; 1 that of 2; 2 that of 3.
    ("LFU", 2),
    # 3 takes the place of 0, which is needed last again: 1 and 2 are there, 0 is not.
    (BEST, 3),
])
def test_one_at_a_time(policy: str, expected: int) -> None:
    assert hits(one_layer("0", "1", "2", "0", "3", "1", "2", "0"), SLOTS, policy) == expected


def test_all_experts_of_a_need_are_there_at_once() -> None:
    # 1 is there for the second need, nothing for the third, which takes both slots, and 3 for the last.
    routes = one_layer("01", "12", "03", "3")
    assert hits(routes, 2, BEST) == 2
    # What a need wants is not given up for the rest of it, though it was needed longest ago.
    assert hits(one_layer("0", "1", "02"), 2, "LRU") == 1


def test_layers_share_the_slots_but_not_the_experts() -> None:
    routes: list[list[Need]] = [[{0: 1}, {0: 1}], [{0: 1}, {0: 1}]]
    assert replay(routes, 2, POLICIES["LRU"]).hits == (1, 1)
    assert replay(routes, 1, POLICIES["LRU"]).hits == (0, 0)
    assert replay(routes, 1, POLICIES[BEST]).needs == (2, 2)


def test_frequency_is_forgotten_with_its_half_life() -> None:
    # 0 was needed four times, long ago; 1 twice, of late. One of them makes way for 2.
    routes = one_layer("0", "0", "0", "0", "1", "1", "2", "1", "0")
    # Never forgotten: 1 makes way, and comes again in the place of 2; 0 is there at the end.
    assert hits(routes, 2, half_life(1e9)) == hits(routes, 2, "LFU") == 5
    # Halved with every pass 0 makes way: 1 is there, 0 is not at the end.
    assert hits(routes, 2, half_life(1)) == 5
    assert replay(routes[:-1], 2, half_life(1)).hits == (5,)
    assert replay(routes[:-1], 2, half_life(1e9)).hits == (4,)


def test_rows_of_a_pass_are_one_need() -> None:
    routes: list[list[Need]] = [[{0: 500}], [{1: 1}], [{1: 1}], [{2: 1}], [{1: 1}]]
    assert hits(routes, 2, "LFU") == 2


def test_a_need_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="2 experts of layer 0 at once, there are 1"):
        replay(one_layer("01"), 1, POLICIES["LRU"])


def test_rates_of_what_was_never_asked() -> None:
    assert replay([], 3, POLICIES[BEST]).rate == 1.0
    assert replay(one_layer("0", "0", "0", "0"), 1, POLICIES["LRU"]).rate == 0.75


def fewest_misses(routes: Routes, slots: int) -> int:
    """Of all ways to choose what makes way, by trying them."""
    needs = [frozenset((layer, expert) for expert in need) for each in routes for layer, need in enumerate(each)]

    @cache
    def misses(at: int, held: frozenset[tuple[int, int]]) -> int:
        if at == len(needs):
            return 0
        others = held - needs[at]
        room = min(len(others), slots - len(needs[at]))
        return len(needs[at] - held) + min(misses(at + 1, needs[at] | frozenset(kept))
                                           for kept in combinations(sorted(others), room))

    return misses(0, frozenset())


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(ROUTES, st.integers(SLOTS, 5))
def test_no_policy_is_better_than_the_best(routes: Routes, slots: int) -> None:
    found = {name: replay(routes, slots, make) for name, make in POLICIES.items()}
    best = found[BEST]
    assert all(sum(each.hits) <= sum(best.hits) and each.needs == best.needs for each in found.values())
    assert sum(best.needs) - sum(best.hits) == fewest_misses(routes, slots)


def test_routes_come_back_from_their_file(tmp_path: Path) -> None:
    routes: list[list[Need]] = [[{3: 1, 127: 500}, {0: 2}], [{5: 1}, {}]]
    save(tmp_path / "routes.json", routes)
    assert load(tmp_path / "routes.json") == routes
