"""Is a budget a ceiling, is the smallest one stated the smallest that works, and is none of it wasted?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BudgetTooSmall
from nvstreamd.pieces import Key, Kind
from nvstreamd.sizes import mib
from nvstreamd.weights.flow.plan import Plan, Rates, minimum_budget, plan, spread
from support.examples import examples

MIB = 1 << 20
PURE = settings(derandomize=True, deadline=None, database=None, max_examples=examples(400))
SIZES = st.lists(st.integers(1, 1 << 20).map(lambda n: 4096 * n), min_size=1, max_size=60)
RATES = st.builds(Rates, st.floats(1e6, 1e12), st.tuples(st.floats(1e6, 1e11)))
TWO_RATES = st.builds(Rates, st.floats(1e6, 1e12), st.tuples(st.floats(1e6, 1e11), st.floats(1e6, 1e11)))
IN_FLIGHT = st.integers(1, 64).map(lambda n: n * MIB)
CONSTANTS = st.integers(0, 100).map(lambda n: 4096 * n)


def keyed(sizes: Sequence[int]) -> dict[Key, int]:
    """Layers of these sizes."""
    return {Key(Kind.LAYER, number): size for number, size in enumerate(sizes)}


def check(chosen: Plan, sizes: list[int], constants: int, budgets: tuple[int, ...], rates: Rates) -> None:
    """What holds for every plan."""
    left, beside = keyed(sizes), constants
    for share, budget in zip(chosen.tiers, budgets, strict=False):
        assert share.memory <= budget and share.rests <= left.keys()
        assert share.resting == beside + sum(left[key] for key in share.rests)
        left = {key: size for key, size in left.items() if key not in share.rests}
        beside = 0
        assert share.moved == sum(left.values())
        if left:
            assert share.slots >= 2 and share.slot_bytes >= max(left.values())
        else:
            assert share.slots == 0
    assert chosen.streamed_bytes == sum(left.values())
    assert chosen.predicted_seconds == max(sum(sizes) / rates.compute, *(
        share.moved / move for share, move in zip(chosen.tiers, rates.moves, strict=False)))


@PURE
@given(SIZES, CONSTANTS, st.floats(0, 1.5), IN_FLIGHT, RATES)
def test_no_plan_exceeds_its_budget(sizes: list[int], constants: int, part: float, in_flight: int,
                                    rates: Rates) -> None:
    smallest = minimum_budget(keyed(sizes), constants)
    budget = smallest + int(part * (sum(sizes) + constants - smallest))
    check(plan(keyed(sizes), constants, (budget,), in_flight, rates), sizes, constants, (budget,), rates)


@PURE
@given(SIZES, CONSTANTS, st.floats(0, 1.2), st.floats(0, 1.2), IN_FLIGHT, TWO_RATES)
def test_a_second_tier_takes_what_the_first_leaves(sizes: list[int], constants: int, one: float, other: float,
                                                   in_flight: int, rates: Rates) -> None:
    """As VRAM before RAM: nothing rests in both, and only what rests in neither comes off the drive."""
    smallest = minimum_budget(keyed(sizes), constants)
    budgets = (smallest + int(one * (sum(sizes) + constants - smallest)),
               minimum_budget(keyed(sizes), 0) + int(other * sum(sizes)))
    chosen = plan(keyed(sizes), constants, budgets, in_flight, rates)
    check(chosen, sizes, constants, budgets, rates)
    assert len(chosen.tiers) == 2 or not chosen.streamed_bytes


@PURE
@given(SIZES, CONSTANTS, IN_FLIGHT, RATES)
def test_the_smallest_budget_works_and_one_byte_less_is_refused(sizes: list[int], constants: int, in_flight: int,
                                                                rates: Rates) -> None:
    smallest = minimum_budget(keyed(sizes), constants)
    check(plan(keyed(sizes), constants, (smallest,), in_flight, rates), sizes, constants, (smallest,), rates)
    with pytest.raises(BudgetTooSmall) as refused:
        plan(keyed(sizes), constants, (smallest - 1,), in_flight, rates)
    assert str(smallest - 1) in refused.value.message and str(smallest) in refused.value.message
    assert mib(smallest) in refused.value.hint


@PURE
@given(SIZES, CONSTANTS, IN_FLIGHT, RATES, st.integers(0, 1 << 40))
def test_everything_stays_when_it_fits(sizes: list[int], constants: int, in_flight: int, rates: Rates,
                                       more: int) -> None:
    budget = sum(sizes) + constants + more
    chosen = plan(keyed(sizes), constants, (budget,), in_flight, rates)
    assert chosen.tiers[0].rests == keyed(sizes).keys() and chosen.streamed_bytes == 0
    check(chosen, sizes, constants, (budget,), rates)


@PURE
@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count))))
def test_resident_segments_are_spread_evenly(counts: tuple[int, int]) -> None:
    count, keep = counts
    chosen = spread(count, keep)
    assert len(set(chosen)) == keep and all(0 <= index < count for index in chosen)
    gaps = [after - before for before, after in pairwise([*chosen, count + (chosen[0] if chosen else 0)])]
    assert not chosen or max(gaps) - min(gaps) <= 1


@PURE
@given(st.integers(3, 80), st.integers(2, 80), IN_FLIGHT, RATES)
def test_a_model_of_equal_layers_uses_its_budget_to_the_last_slot(count: int, afforded: int, in_flight: int,
                                                                  rates: Rates) -> None:
    size = 10 * MIB
    chosen = plan(keyed([size] * count), 0, (min(afforded, count) * size,), in_flight, rates)
    assert chosen.tiers[0].memory == min(afforded, count) * size


def test_a_budget_in_words_works_when_it_is_typed_back() -> None:
    assert mib(0) == "0MiB" and mib(1) == "1MiB" and mib(MIB) == "1MiB" and mib(MIB + 1) == "2MiB"


def test_the_same_wishes_make_the_same_plan() -> None:
    arguments = (keyed([5 * MIB] * 30), MIB, (60 * MIB,), 16 * MIB, Rates(5e9, (1e9,)))
    assert plan(*arguments) == plan(*arguments)
