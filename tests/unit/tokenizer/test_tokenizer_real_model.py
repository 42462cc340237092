"""Are the ids, bytes and facts of a real model those of llama.cpp?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.tokenizer import load
from support.examples import examples
from unit.tokenizer.corpus import TEXTS
from unit.tokenizer.pairs import Pair


@pytest.mark.parametrize("parse_special", [False, True])
def test_corpus(real: Pair, parse_special: bool) -> None:
    ours, oracle = real
    for text in TEXTS:
        assert ours.encode(text, True, parse_special) == oracle.tokenize(text, True, parse_special), text


def test_any_text(real: Pair) -> None:
    ours, oracle = real

    @settings(max_examples=examples(200), deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cn")), max_size=80), st.booleans())
    def check(text: str, parse_special: bool) -> None:
        assert ours.encode(text, False, parse_special) == oracle.tokenize(text, False, parse_special)

    check()


def test_every_piece(real: Pair) -> None:
    ours, oracle = real
    for token in range(ours.vocab_size):
        for special in (False, True):
            assert ours.token_bytes(token, special) == oracle.token_to_piece(token, special)


def test_facts(real: Pair) -> None:
    ours, oracle = real
    facts = oracle.facts()
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (len(oracle), facts["bos"], facts["eos"])
    assert (ours.pre, ours.add_bos, ours.add_eos) == ("smollm", facts["add_bos"], facts["add_eos"])
    assert ours.eog_ids == {token for token in range(len(oracle)) if oracle.is_eog(token)}


def test_facts_are_frozen(real: Pair) -> None:
    broken: Any = real[0]
    with pytest.raises(AttributeError):
        broken.bos_id = 7


def test_a_user_cannot_spell_a_control_token(real: Pair) -> None:
    ours, oracle = real
    parts = [("<|im_start|>user\n", True), ("\n hi <|im_end|>", False), ("<|im_end|>\n", True)]
    ids = ours.encode_parts(parts, add_special=True)
    end = oracle.tokenize("<|im_end|>", parse_special=True)[0]
    assert ids.count(end) == 1
    assert ours.decode(ids, special=True) == "".join(text for text, _ in parts)


def test_parts_of_innocent_text_give_the_ids_of_the_whole(real: Pair) -> None:
    ours, oracle = real
    parts = [("<|im_start|>user\n", True), ("\n\n  it", False), ("'s<|im_end|>\n", True)]
    whole = "".join(text for text, _ in parts)
    assert ours.encode_parts(parts, add_special=False) == oracle.tokenize(whole, False, True)


def test_begin_and_end_tokens_are_added_when_asked(real_metadata: dict[str, object]) -> None:
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    ours = load({**real_metadata, **flags})
    assert ours.encode("a", True, False) == [1, *ours.encode("a", False, False), 2]


def test_a_lone_surrogate_is_refused(real: Pair) -> None:
    with pytest.raises(UnicodeEncodeError):
        real[0].encode("\ud800", False, False)


def test_a_text_of_absurd_length_is_refused(real: Pair) -> None:
    with pytest.raises(ValueError, match="4194304 characters"):
        real[0].encode("a" * 4_194_305, False, False)


def test_a_token_beyond_the_vocabulary_is_refused(real: Pair) -> None:
    for token in (-1, 49152):
        with pytest.raises(IndexError):
            real[0].token_bytes(token)
