"""Is a model's memory divided so that weights and KV cache fit together, and is what does not fit refused before?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvstreamd.engine.budget import GroupSize, Shares, Sizes, check_free, divide
from nvstreamd.errors import MEMORY, BudgetTooSmall, NotEnoughMemory
from nvstreamd.memory import Bound

MIB = 1 << 20


def sizes_of(weights: int, least: int, page: int, context: int) -> Sizes:
    """A model whose layers see every token."""
    return Sizes("/m.gguf", weights, least, (GroupSize.of(page, context, None),))


def shares(weights: int, pages: int) -> Shares:
    """Shares with pages of a MiB."""
    return Shares(weights, (pages,), pages * MIB)


SIZES = sizes_of(1000 * MIB, 40 * MIB, MIB, 4096)


def test_the_kv_cache_has_what_it_had_before_where_that_leaves_the_weights_most() -> None:
    assert divide(SIZES, 1100 * MIB, 0, 0, 8) == shares(844 * MIB, 256)
    assert divide(SIZES, 900 * MIB, 0, 0, 8) == shares(675 * MIB, 225)
    assert divide(SIZES, 8000 * MIB, 0, 0, 8) == shares(1000 * MIB, 256)


def test_a_budget_that_is_asked_for_is_given_and_the_rest_is_for_the_other() -> None:
    assert divide(SIZES, 316 * MIB, 60 * MIB, 0, 8) == shares(60 * MIB, 79)
    assert divide(SIZES, 100 * MIB, 0, 30 * MIB, 8) == shares(70 * MIB, 30)
    assert divide(SIZES, 50 * MIB, 0, 0, 8) == shares(40 * MIB, 10)


def test_a_budget_above_what_the_model_has_leaves_the_rest_to_the_kv_cache() -> None:
    assert divide(SIZES, 1100 * MIB, 1100 * MIB, 0, 8) == shares(1000 * MIB, 100)
    with pytest.raises(BudgetTooSmall, match="a KV budget of 0MiB"):
        divide(SIZES, 900 * MIB, 900 * MIB, 0, 8)


def test_never_more_pages_than_requests_at_once_can_use() -> None:
    small = sizes_of(10 * MIB, MIB, MIB, 64)
    assert divide(small, 1000 * MIB, 0, 0, 8).pages == (16,)
    assert divide(small, 1000 * MIB, 0, 900 * MIB, 8).pages == (128,)


@pytest.mark.parametrize(("memory", "budget", "kv_budget", "message"), [
    (30 * MIB, 0, 0, "needs"),  # of weights
    (40 * MIB, 0, 0, "a KV budget of 0MiB"),
    (50 * MIB, 0, 20 * MIB, "needs"),
    (60 * MIB, 39 * MIB, 0, "needs"),
    (100 * MIB, 60 * MIB, 50 * MIB, "more than the 100MiB"),
    (100 * MIB, 60 * MIB, 1, "a KV budget of 1 bytes"),
])
def test_what_cannot_be_is_refused_with_the_figure(memory: int, budget: int, kv_budget: int, message: str) -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        divide(SIZES, memory, budget, kv_budget, 8)
    assert message in str(refused.value) and refused.value.field in ("budget", "kv_budget")


@given(st.integers(0, 3000), st.integers(0, 1200), st.integers(0, 400), st.integers(1, 64), st.integers(1, 7 * MIB))
def test_both_together_are_never_above_the_ceiling(memory: int, budget: int, kv_budget: int, sequences: int,
                                                   page: int) -> None:
    sizes = sizes_of(1000 * MIB, 40 * MIB, page, 4096)
    try:
        found = divide(sizes, memory * MIB, budget * MIB, kv_budget * MIB, sequences)
    except BudgetTooSmall:
        return
    assert found.pages[0] >= 1 and sizes.least <= found.weights <= sizes.weights
    assert found.weights + found.pages[0] * page <= memory * MIB


def test_groups_with_a_window_need_no_more_than_their_window() -> None:
    """As Gemma 3: 3 layers keep 32,768 tokens, 15 keep what a window of 512 sees, for as many sequences as run."""
    whole, window = GroupSize.of(96 << 10, 32768, None), GroupSize.of(480 << 10, 32768, 512)
    assert (whole.most, window.most) == (1024, 33)
    sizes = Sizes("/g.gguf", 240 * MIB, 8 * MIB, (whole, window))
    assert sizes.pages_within(1 << 40, 8) == (8 * 1024, 8 * 33)
    few = sizes.pages_within(8 * 33 * sizes.page, 8)
    assert few == (8 * 33, 8 * 33)
    many = sizes.pages_within(256 * MIB, 8)
    assert many[0] > 1024 and many[1] == 8 * 33
    assert sizes.kv_bytes(many) <= 256 * MIB < sizes.kv_bytes(many) + whole.page


def test_a_refusal_says_what_there_is_and_which_budget_fits() -> None:
    bound = Bound("control group /x", 300 * MIB, 50 * MIB)
    check_free(SIZES, shares(40 * MIB, 10), bound)
    check_free(SIZES, shares(1 << 50, 10), None)
    with pytest.raises(NotEnoughMemory) as refused:
        check_free(SIZES, shares(41 * MIB, 10), bound)
    assert refused.value.field == MEMORY and "control group /x" in str(refused.value)
    assert "a budget of at most 40MiB" in refused.value.hint and "300MiB" in str(refused.value)
    with pytest.raises(NotEnoughMemory) as hopeless:
        check_free(SIZES, shares(40 * MIB, 20), bound)
    assert "the least that works" in hopeless.value.hint
