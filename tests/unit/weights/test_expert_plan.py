"""Do experts get what is left of a budget, in slots that suit them, and is the smallest one the smallest that works?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BudgetTooSmall
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.expert_plan import classes_of, least_bytes, share_of
from nvstreamd.weights.flow.plan import Rates, minimum_budget, with_experts
from support.examples import examples

PAGE = 4096
RATES = Rates(1e9, (1e9,))
PURE = settings(derandomize=True, deadline=None, database=None, max_examples=examples(300))


def model(layers: int, per_layer: int, sizes: list[int], dense: int = 50) -> dict[Key, int]:
    """Layers of `dense` pages, whose experts have sizes in turns, layer by layer."""
    found: dict[Key, int] = {}
    for layer in range(layers):
        found[Key(Kind.LAYER, layer)] = dense * PAGE
        found |= {Key(Kind.EXPERT, layer, each): sizes[layer % len(sizes)] * PAGE for each in range(per_layer)}
    return found


@PURE
@given(st.integers(1, 6), st.integers(1, 20), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.floats(0, 1.5),
       st.integers(0, 9))
def test_no_plan_exceeds_its_budget_and_every_expert_finds_a_slot(layers: int, per_layer: int, sizes: list[int],
                                                                  part: float, constants: int) -> None:
    all_sizes = model(layers, per_layer, sizes)
    smallest = minimum_budget(all_sizes, constants * PAGE)
    total = sum(all_sizes.values()) + constants * PAGE
    budget = smallest + int(part * (total - smallest))
    found = with_experts(all_sizes, 1, constants * PAGE, budget, 1 << 20, RATES)
    own = found.experts
    assert own is not None and found.tiers[0].memory + own.memory <= budget
    assert own.keys == tuple(key for key in all_sizes if key.kind is Kind.EXPERT) and own.per_layer == per_layer
    for key, number in zip(own.keys, own.classes, strict=True):
        assert own.sizes[number] >= all_sizes[key] and own.slots[number] >= min(2, own.classes.count(number))
        # What is given away for a slot of another size is less than an eighth of it.
        assert own.sizes[number] * 7 <= all_sizes[key] * 8
    assert all(count <= own.classes.count(number) for number, count in enumerate(own.slots))
    if budget >= total and len(set(sizes)) == 1:
        assert sum(own.slots) == len(own.keys) and found.missed_bytes == 0


@PURE
@given(st.integers(1, 5), st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_one_byte_less_than_the_smallest_budget_is_refused(layers: int, per_layer: int, sizes: list[int]) -> None:
    all_sizes = model(layers, per_layer, sizes)
    smallest = minimum_budget(all_sizes, 0)
    assert with_experts(all_sizes, 1, 0, smallest, 1 << 20, RATES).experts is not None
    with pytest.raises(BudgetTooSmall, match=str(smallest)):
        with_experts(all_sizes, 1, 0, smallest - 1, 1 << 20, RATES)


def test_what_every_token_needs_has_memory_first() -> None:
    sizes = model(8, 16, [20])
    dense = 8 * 50 * PAGE
    found = with_experts(sizes, 2, 0, dense + 40 * 20 * PAGE, 1 << 20, RATES)
    assert found.tiers[0].moved == 0 and found.experts is not None and found.experts.slots == (40,)
    # Two experts a layer and token, of which 40 in 128 are there.
    assert found.missed_bytes == int(8 * 2 * 20 * PAGE * (1 - 40 / 128))
    assert found.streamed_bytes == found.missed_bytes


def test_experts_of_two_sizes_have_the_same_part_of_each_in_memory() -> None:
    """As in files whose last projection has more bits in half of the layers."""
    experts = {key: size for key, size in model(8, 16, [20, 30]).items() if key.kind is Kind.EXPERT}
    found = share_of(experts, 2, sum(experts.values()) // 2)
    assert found.sizes == (20 * PAGE, 30 * PAGE) and found.slots == (32, 32)
    assert classes_of(experts) == found.sizes and least_bytes(experts) == 2 * 50 * PAGE


def test_rows_touch_experts_as_chance_has_it() -> None:
    found = share_of({Key(Kind.EXPERT, 0, each): PAGE for each in range(128)}, 8, 128 * PAGE)
    assert found.touched(1) == pytest.approx(8 / 128) and found.touched(64) == pytest.approx(0.984, abs=0.001)


def test_a_budget_of_all_weights_has_all_experts_of_sizes_that_are_nearly_alike() -> None:
    """As of Q5_K beside Q6_K: slots for the larger would leave no room for a few of the smaller."""
    experts = {key: size for key, size in model(8, 64, [30, 33]).items() if key.kind is Kind.EXPERT}
    total = sum(experts.values())
    assert classes_of(experts) == (33 * PAGE,)
    whole = share_of(experts, 2, total)
    assert sum(whole.slots) == len(experts) and whole.memory == total
    assert len(share_of(experts, 2, total - PAGE).slots) == 1
