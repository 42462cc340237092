"""Are as many guesses verified as pay, and none that make everybody wait?"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.speculation.width import MOST_GUESSES, Guess, widths
from support.examples import examples

GUESSES = st.lists(st.builds(Guess, st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=4)


def rate(guesses: list[Guess], taken: tuple[int, ...], others: int, per_row: float) -> float:
    """Tokens a second of a pass that takes 1 s and `per_row` for each guessed token."""
    gained = sum(1 + sum(guess.probability ** (place + 1) for place in range(count))
                 for guess, count in zip(guesses, taken, strict=True))
    return (gained + others) / (1 + per_row * sum(taken))


@settings(derandomize=True, deadline=None, database=None, max_examples=examples(300))
@given(GUESSES, st.integers(0, 8), st.floats(0, 1))
def test_no_other_choice_yields_more(guesses: list[Guess], others: int, per_row: float) -> None:
    found = tuple(widths(guesses, others, lambda more: 1 + per_row * more))
    best = max(rate(guesses, taken, others, per_row)
               for taken in product(*(range(guess.count + 1) for guess in guesses)))
    assert all(taken <= guess.count for taken, guess in zip(found, guesses, strict=True))
    assert rate(guesses, found, others, per_row) == pytest.approx(best)


def test_while_weights_stream_guesses_are_free_and_while_they_rest_bad_ones_are_not() -> None:
    doubtful = [Guess(16, 0.3)]
    assert widths(doubtful, 0, lambda more: max(1.0, 0.1 + 0.02 * more))[0] >= 8
    assert widths(doubtful, 0, lambda more: 1.0 + 0.4 * more) == [0]
    assert widths([Guess(16, 0.95)], 0, lambda more: 1.0 + 0.1 * more)[0] >= 8


def test_those_who_wait_for_the_pass_count() -> None:
    """Alone a guess pays that costs seven others too much of their time."""
    costs = [Guess(4, 0.6)]
    assert widths(costs, 0, lambda more: 1 + 0.12 * more) != [0]
    assert widths(costs, 7, lambda more: 1 + 0.12 * more) == [0]


def test_a_pass_never_gets_more_than_so_many_guesses() -> None:
    assert sum(widths([Guess(16, 1.0)] * 32, 0, lambda more: 1.0)) == MOST_GUESSES
