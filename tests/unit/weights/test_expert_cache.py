"""Does the cache of experts never lose one that is needed, and keep those that will be? Its future is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.weights.flow.expert_cache import ExpertCache
from support.examples import examples
from support.expert_replay import POLICIES, Need, Routes, replay

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=examples(300))


class Ours:
    """The engine's cache behind the protocol of recorded passes: what is missing comes at once."""

    def __init__(self, layers: int, per_layer: int, slots: int, passes: Routes) -> None:
        self.cache = ExpertCache(per_layer, 1, [0] * (layers * per_layer), [slots])
        self.per_layer = per_layer
        self.rows = [max(1, sum(each[0].values()) // len(each[0])) if each else 1 for each in passes]
        self.at = -1

    def need(self, layer: int, experts: Need) -> int:
        """Serves a need as the engine does, and says how many were there."""
        if layer == 0:
            self.at += 1
            then = self.rows[self.at + 1] if self.at + 1 < len(self.rows) else 1
            self.cache.begin(self.rows[self.at], then)
        first = layer * self.per_layer
        need = self.cache.need(layer, {first + expert: rows for expert, rows in experts.items()})
        left = set(need.missing)
        for expert in need.there:
            self.cache.done(expert)
        while left:
            while (fetch := self.cache.choose()) is not None:
                self.cache.arrived(fetch)
                left.discard(fetch.expert)
                self.cache.done(fetch.expert)
        return len(need.there)


def drifting(passes: int, layers: int, per_layer: int, used: int, seed: int, turn: int = 200) -> list[list[Need]]:
    """Needs of one token a pass, by weights 1 / rank in an order of each layer's own that changes every `turn`."""
    rng = np.random.default_rng(seed)
    chances = 1 / np.arange(1, per_layer + 1)
    routes: list[list[Need]] = []
    for number in range(passes):
        if number % turn == 0:
            orders = [rng.permutation(per_layer) for _ in range(layers)]
        routes.append([dict.fromkeys(order[rng.choice(per_layer, used, replace=False, p=chances / chances.sum())]
                                     .tolist(), 1) for order in orders])
    return routes


@pytest.mark.thorough
def test_it_has_more_hits_than_recency_alone_and_nearly_as_many_as_foresight() -> None:
    routes = drifting(600, 8, 128, 8, seed=4)
    ours = replay(routes, 512, lambda slots, given: Ours(8, 128, slots, given)).rate
    rates = {name: replay(routes, 512, make).rate for name, make in POLICIES.items()}
    assert ours > rates["LRU"] and ours >= 0.85 * rates["Belady"], (ours, rates)


def test_a_prompt_that_needs_every_expert_leaves_most_of_them_where_they_are() -> None:
    """Chunk after chunk in the same order: recency alone would have thrown each out before it comes again."""
    layers, per_layer, slots = 6, 32, 96
    chunk: list[Need] = [dict.fromkeys(range(per_layer), 16) for _ in range(layers)]
    routes = [chunk] * 8
    ours = replay(routes, slots, lambda count, given: Ours(layers, per_layer, count, given))
    assert replay(routes, slots, POLICIES["LRU"]).rate == 0
    assert sum(ours.hits) >= 0.9 * replay(routes, slots, POLICIES["Belady"]).rate * sum(ours.needs)


def test_what_the_prompt_used_most_is_there_when_decoding_begins() -> None:
    layers, per_layer, slots = 4, 32, 40
    hot: Mapping[int, int] = {expert: 60 if expert < 8 else 2 for expert in range(per_layer)}
    passes: list[list[Need]] = [[hot] * layers, [dict.fromkeys(range(8), 1)] * layers]
    ours = Ours(layers, per_layer, slots, [*passes])
    for layer in range(layers):
        ours.need(layer, hot)
    assert sum(ours.need(layer, dict.fromkeys(range(8), 1)) for layer in range(layers)) >= 0.9 * 8 * layers


def fetched(cache: ExpertCache, kinds: Sequence[int], home: dict[int, int], held: set[int], *, idle: bool) -> bool:
    """Brings what comes next into its slot, of which `home` has those that are taken. False: nothing comes."""
    fetch = cache.choose() or (cache.choose_idle() if idle else None)
    if fetch is None:
        return False
    gone = [each for each, slot in home.items() if (kinds[each], slot) == (kinds[fetch.expert], fetch.slot)]
    assert not any(each in held for each in gone)
    for each in gone:
        del home[each]
    home[fetch.expert] = fetch.slot
    cache.arrived(fetch)
    return True


@PURE
@given(st.integers(1, 3), st.integers(1, 9), st.data())
def test_needs_are_met_whatever_arrives_when(classes: int, per_layer: int, data: st.DataObject) -> None:
    """No slot is given away that a need holds, none is lost, and every need comes to its end."""
    layers = data.draw(st.integers(1, 4))
    kinds = data.draw(st.lists(st.integers(0, classes - 1), min_size=layers * per_layer, max_size=layers * per_layer))
    slots = [max(1, data.draw(st.integers(1, 6))) for _ in range(classes)]
    cache = ExpertCache(per_layer, 1, kinds, slots)
    home: dict[int, int] = {}
    held: set[int] = set()
    for layer in [layer for _ in range(3) for layer in range(layers)]:
        if layer == 0:
            cache.begin(data.draw(st.integers(1, 40)), 1)
        wanted: Sequence[int] = data.draw(st.lists(st.integers(0, per_layer - 1), min_size=1, unique=True))
        rows = {layer * per_layer + expert: data.draw(st.integers(1, 9)) for expert in wanted}
        need = cache.need(layer, rows)
        assert set(need.there) | set(need.missing) == rows.keys() and not set(need.there) & set(need.missing)
        held = set(need.there)
        assert all(cache.there(each) and home[each] == cache.slot(each) for each in need.there)
        if data.draw(st.booleans()):
            held = set()
            cache.forget(need.there + need.missing)
            continue
        left = set(need.missing)
        for each in need.there:
            held.discard(each)
            cache.done(each)
        while left:
            assert cache.wants or any(cache.there(each) for each in left)
            assert cache.choose_ahead() is None, "what is needed comes first"
            fetched(cache, kinds, home, held, idle=False)
            for each in [each for each in left if cache.there(each)]:
                left.discard(each)
                cache.done(each)
        while data.draw(st.booleans()) and fetched(cache, kinds, home, held, idle=True):
            assert all(slot < slots[kinds[each]] for each, slot in home.items())


def test_free_slots_are_filled_before_anything_is_asked_for() -> None:
    cache = ExpertCache(4, 1, [0] * 8, [6])
    found = []
    while (fetch := cache.choose_idle()) is not None:
        cache.arrived(fetch)
        found.append(fetch.expert)
    # Some of each layer.
    assert found == [0, 4, 1, 5, 2, 6] and not cache.wishes


@pytest.mark.parametrize("half_life", [8.0, 1e9])
def test_the_rarest_use_outweighs_none(half_life: float) -> None:
    cache = ExpertCache(3, 1, [0, 0, 0], [2], half_life)
    for expert in (0, 1):
        cache.begin(1, 1)
        cache.need(0, {expert: 1})
        fetch = cache.choose()
        assert fetch is not None
        cache.arrived(fetch)
        cache.done(expert)
    cache.begin(1, 1)
    cache.need(0, {1: 1})
    cache.done(1)
    cache.begin(1, 1)
    cache.need(0, {2: 1})
    fetch = cache.choose()
    assert fetch is not None and not cache.there(0) and cache.there(1)


def test_many_rows_bring_what_the_next_layer_will_need_and_a_few_bring_nothing() -> None:
    for rows, ahead in ((64, 4), (1, 0)):
        cache = ExpertCache(8, 2, [0] * 24, [12])
        cache.begin(rows, 1)
        cache.need(0, dict.fromkeys(range(8), rows // 4 + 1))
        found = []
        while (fetch := cache.choose() or cache.choose_ahead()) is not None:
            cache.arrived(fetch)
            found.append(fetch.expert)
        # What is held stays; what came ahead does not push out what came before it for the same reason.
        assert sorted(found[:8]) == list(range(8)) and sorted(found[8:]) == list(range(8, 8 + ahead))
        assert not cache.wants
        # It was read for that need all the same, once.
        for expected in (tuple(range(8, 8 + ahead)), ()):
            need = cache.need(1, dict.fromkeys(range(8, 16), 9))
            assert tuple(sorted(need.ahead)) == expected and set(need.there) == set(range(8, 8 + ahead))
