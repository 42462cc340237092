"""Is what is guessed what really followed before, of this user's texts alone, and is the work bounded?"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.speculation.suffixes import END, GRAM, LONGEST, Suffixes
from support.examples import examples

PURE = settings(derandomize=True, deadline=None, database=None, max_examples=examples(300))
TEXTS = st.lists(st.integers(0, 3), max_size=60)


def filled(*texts: list[int]) -> Suffixes:
    """An index that has seen all of these texts."""
    found = Suffixes()
    for text in texts:
        found.add([*text, END])
    found.index(1 << 20)
    return found


@PURE
@given(TEXTS, st.integers(1, 12))
def test_a_guess_is_what_followed_the_same_tokens(text: list[int], most: int) -> None:
    own = Suffixes()
    own.add(text)
    own.index(1 << 20)
    found = own.follow(text, most)
    places = [place for place in range(GRAM, len(text)) if text[place - GRAM : place] == text[-GRAM:]]
    if not places:
        assert found is None
        return
    assert found is not None and 1 <= len(found.tokens) <= most
    last = places[-1]
    assert list(found.tokens) == text[last : last + most]
    agreeing = next((length for length in range(len(text) + 1) if length == last
                     or text[last - length - 1] != text[-length - 1]), 0)
    assert found.agreeing == min(agreeing, LONGEST)


@PURE
@given(st.lists(TEXTS, max_size=4), TEXTS)
def test_no_guess_runs_from_one_text_into_the_next(texts: list[list[int]], recent: list[int]) -> None:
    found = filled(*texts).follow(recent, 8)
    if found is not None:
        assert END not in found.tokens
        grams = [text[at : at + GRAM + len(found.tokens)] for text in texts for at in range(len(text))]
        assert [*recent[-GRAM:], *found.tokens] in grams


def test_a_long_text_is_looked_at_piece_by_piece() -> None:
    text = Suffixes()
    text.add([*range(100), *range(50)])
    text.index(20)
    assert text.follow([10, 11, 12], 2) is not None and text.follow([30, 31, 32], 2) is None
    text.index(20)
    assert text.follow([30, 31, 32], 2) is not None


def test_too_few_tokens_say_nothing() -> None:
    assert filled([1, 2, 3, 4]).follow([2, 3], 5) is None
