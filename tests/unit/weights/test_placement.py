"""Is a budget a ceiling, is the smallest one stated the smallest that works, and is none of it wasted?"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BudgetTooSmall
from nvstreamd.weights.placement import MIB, Plan, Rates, mib, minimum_budget, plan, spread

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=400)
SIZES = st.lists(st.integers(1, 1 << 20).map(lambda n: 4096 * n), min_size=1, max_size=60)
RATES = st.builds(Rates, st.floats(1e6, 1e11), st.floats(1e6, 1e12))
IN_FLIGHT = st.integers(1, 64).map(lambda n: n * MIB)
CONSTANTS = st.integers(0, 100).map(lambda n: 4096 * n)


def check(chosen: Plan, sizes: list[int], constants: int, rates: Rates) -> None:
    """What holds for every plan."""
    streamed = [size for index, size in enumerate(sizes) if index not in chosen.resident]
    assert chosen.memory <= chosen.budget
    assert chosen.resident_bytes == constants + sum(sizes[index] for index in chosen.resident)
    assert chosen.streamed_bytes == sum(streamed)
    assert chosen.predicted_seconds == max(sum(streamed) / rates.read, sum(sizes) / rates.compute)
    if streamed:
        assert chosen.slots >= 2 and chosen.slot_bytes >= max(streamed)
    else:
        assert chosen.slots == 0


@PURE
@given(SIZES, CONSTANTS, st.floats(0, 1.5), IN_FLIGHT, RATES)
def test_no_plan_exceeds_its_budget(sizes: list[int], constants: int, share: float, in_flight: int,
                                    rates: Rates) -> None:
    smallest = minimum_budget(sizes, constants)
    budget = smallest + int(share * (sum(sizes) + constants - smallest))
    check(plan(sizes, constants, budget, in_flight, rates), sizes, constants, rates)


@PURE
@given(SIZES, CONSTANTS, IN_FLIGHT, RATES)
def test_the_smallest_budget_works_and_one_byte_less_is_refused(sizes: list[int], constants: int, in_flight: int,
                                                                rates: Rates) -> None:
    smallest = minimum_budget(sizes, constants)
    check(plan(sizes, constants, smallest, in_flight, rates), sizes, constants, rates)
    with pytest.raises(BudgetTooSmall) as refused:
        plan(sizes, constants, smallest - 1, in_flight, rates)
    assert str(smallest - 1) in refused.value.message and str(smallest) in refused.value.message
    assert mib(smallest) in refused.value.hint


@PURE
@given(SIZES, CONSTANTS, IN_FLIGHT, RATES, st.integers(0, 1 << 40))
def test_everything_stays_when_it_fits(sizes: list[int], constants: int, in_flight: int, rates: Rates,
                                       more: int) -> None:
    chosen = plan(sizes, constants, sum(sizes) + constants + more, in_flight, rates)
    assert chosen.resident == set(range(len(sizes))) and chosen.streamed_bytes == 0
    check(chosen, sizes, constants, rates)


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
    chosen = plan([size] * count, 0, min(afforded, count) * size, in_flight, rates)
    assert chosen.memory == min(afforded, count) * size


def test_a_budget_in_words_works_when_it_is_typed_back() -> None:
    assert mib(0) == "0MiB" and mib(1) == "1MiB" and mib(MIB) == "1MiB" and mib(MIB + 1) == "2MiB"


def test_the_same_wishes_make_the_same_plan() -> None:
    arguments = ([5 * MIB] * 30, MIB, 60 * MIB, 16 * MIB, Rates(1e9, 5e9))
    assert plan(*arguments) == plan(*arguments)
