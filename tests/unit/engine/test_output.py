"""Does the client see all of the text, in whole code points, up to the stop string, also when its engine died?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.output import Output, Piece
from nvstreamd.engine.tokenizer import Detokenizer, Tokenizer, load
from support.examples import examples
from support.files import SMOLLM2
from support.vocab_gguf import read_metadata

fixed = settings(derandomize=True, deadline=None, max_examples=examples(300))
# Short and self-similar, so that texts run into their beginnings again and again.
STOPS = st.lists(st.text("ab\u00e4", min_size=1, max_size=4), max_size=3)
# Whole and broken code points; the empty one is a control token.
BYTES = [b"a", b"b", b"ab", b"ba", b"\xc3", b"\xa4", b"\xc3\xa4", b"a\xc3", b"\xa4b", b"\xa4\xc3", b"\xf0\x9f", b"\x98",
         b"\x80", b"", b"\xff"]
TOKENS = st.lists(st.integers(0, len(BYTES) - 1), max_size=30)


def small(stops: Sequence[str] = ()) -> Output:
    return Output(Detokenizer(lambda token: BYTES[token]), stops)


def stream(output: Output, tokens: Sequence[int]) -> list[Piece]:
    """What a client gets, as the server does it: up to the stop string, or with a flush at the end."""
    pieces = []
    for token in tokens:
        piece = output.push(token)
        if piece is not None:
            pieces.append(piece)
            if piece.stop is not None:
                return pieces
    rest = output.flush()
    return [*pieces, rest] if rest is not None else pieces


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


@cache
def tokenizer() -> Tokenizer:
    return load(read_metadata(SMOLLM2))


def real(stops: Sequence[str] = ()) -> Output:
    return Output(tokenizer().detokenizer(), stops)


def encode(text: str) -> list[int]:
    return tokenizer().encode(text, add_special=False, parse_special=False)


@fixed
@given(tokens=TOKENS)
def test_the_deltas_are_the_text(tokens: list[int]) -> None:
    pieces = stream(small(), tokens)
    assert text_of(pieces) == b"".join(BYTES[token] for token in tokens).decode("utf-8", "replace")
    assert ids_of(pieces) == tokens


@fixed
@given(ids=st.lists(st.integers(0, 49151), max_size=20))
def test_the_deltas_of_any_real_tokens_are_their_text(ids: list[int]) -> None:
    pieces = stream(real(), ids)
    assert text_of(pieces) == tokenizer().decode(ids)
    assert ids_of(pieces) == ids


@fixed
@given(text=st.text("a \n\u00e4\u00df\u00f1\u05d0\u6f22\u5b57\U0001f642\U0001f469\u200d\U0001f3fd", max_size=30))
def test_a_text_of_any_language_never_shows_half_a_code_point(text: str) -> None:
    pieces = stream(real(), encode(text))
    assert text_of(pieces) == text
    assert all("\ufffd" not in piece.text for piece in pieces)


@fixed
@given(tokens=TOKENS, stops=STOPS)
def test_the_text_ends_before_the_first_stop_string(tokens: list[int], stops: list[str]) -> None:
    pieces = stream(small(stops), tokens)
    shown, whole = text_of(pieces), b"".join(BYTES[token] for token in tokens).decode("utf-8", "replace")
    assert whole.startswith(shown)
    assert not any(stop in shown for stop in stops)
    stopped = pieces[-1].stop if pieces else None
    if stopped is not None:
        assert whole[len(shown) :].startswith(stopped)
    else:
        assert shown == whole and ids_of(pieces) == tokens


@fixed
@given(tokens=TOKENS, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(tokens: list[int], stops: list[str]) -> None:
    output, shown, fed = small(stops), "", b""
    longest = max((len(stop) for stop in stops), default=1)
    for token in tokens:
        fed += BYTES[token]
        piece = output.push(token)
        shown += piece.text if piece is not None else ""
        if piece is not None and piece.stop is not None:
            return
        whole = fed.decode("utf-8", "ignore")
        if all(BYTES[t] in (b"a", b"b", b"\xc3\xa4", b"") for t in tokens):
            assert len(whole) - len(shown) < longest


@fixed
@given(tokens=TOKENS.filter(bool), stops=STOPS, data=st.data())
def test_a_replayed_stream_goes_on_as_if_nothing_had_happened(tokens: list[int], stops: list[str],
                                                              data: st.DataObject) -> None:
    undisturbed = stream(small(stops), tokens)
    # The engine died after any piece; what it held back then is generated again.
    sent = undisturbed[: data.draw(st.integers(0, len(undisturbed)))]
    if sent and (sent[-1].stop is not None or len(ids_of(sent)) == len(tokens)):
        return
    other = small(stops)
    for token in ids_of(sent):
        other.push(token)
    other.flush()
    rest = stream(other, tokens[len(ids_of(sent)) :])
    assert ids_of([*sent, *rest]) == ids_of(undisturbed)
    assert text_of([*sent, *rest]) == text_of(undisturbed)
    assert rest[-1].stop == undisturbed[-1].stop


def test_a_replay_finds_the_stop_string_that_ended_the_stream() -> None:
    tokens = encode("one two STOP three")
    pieces = stream(real(["STOP"]), tokens)
    other = real(["STOP"])
    replayed = [other.push(token) for token in ids_of(pieces)]
    assert replayed[-1] is not None and replayed[-1].stop == "STOP"


def test_a_stop_string_across_tokens_is_found_and_cut_off() -> None:
    tokens = encode("The answer is 42.\n\nQuestion")
    pieces = stream(real(["2.\n\nQ"]), tokens)
    assert text_of(pieces) == "The answer is 4"
    assert pieces[-1].stop == "2.\n\nQ"
    assert ids_of(pieces) == tokens[: len(ids_of(pieces))]


def test_held_back_text_comes_when_it_turns_out_not_to_be_a_stop() -> None:
    output = small(["aab"])
    shown = [output.push(token) for token in (0, 0, 0, 0, 4, 5)]
    assert [piece.text if piece else None for piece in shown] == [None, None, "a", "a", None, "aa\u00e4"]


def test_the_earliest_stop_string_wins_and_the_longest_of_those_that_begin_there() -> None:
    output = Output(Detokenizer(lambda token: b"xxabcd"), ["d", "ab", "abc"])
    piece = output.push(0)
    assert piece == Piece((0,), "xx", "abc")


def test_a_token_without_text_is_shown_too() -> None:
    assert small().push(13) == Piece((13,), "")


@pytest.mark.parametrize("tokens", [[4], [0, 4], [10, 11]])
def test_an_open_code_point_at_the_end_is_a_replacement_character(tokens: list[int]) -> None:
    pieces = stream(small(["zz"]), tokens)
    assert text_of(pieces).endswith("\ufffd") and ids_of(pieces) == tokens
