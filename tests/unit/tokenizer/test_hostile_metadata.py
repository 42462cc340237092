"""Does a damaged or hostile file fail with the field that is wrong? Never with a crash."""

from __future__ import annotations

import pytest

from nvstreamd.engine.tokenizer import TokenizerError, load
from nvstreamd.engine.tokenizer.pieces import byte_alphabet
from unit.tokenizer.pairs import G

GOOD: dict[str, object] = {
    G + "model": "gpt2", G + "pre": "gpt-2", G + "tokens": [*byte_alphabet().values(), "ab"],
    G + "merges": ["a b"], G + "token_type": [1] * 257, G + "bos_token_id": 0, G + "eos_token_id": 1,
}  # fmt: skip
SPM: dict[str, object] = {G + "model": "llama", G + "tokens": ["<unk>", "<s>", "</s>", "a"]}


def test_the_good_file_loads() -> None:
    assert load(GOOD).encode("ab", False, False) == [256]


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (GOOD, "model", None),
        (GOOD, "model", "bert"),
        (GOOD, "model", 7),
        (GOOD, "pre", 7),
        (GOOD, "pre", "x" * 100_000),
        (GOOD, "tokens", None),
        (GOOD, "tokens", []),
        (GOOD, "tokens", "abc"),
        (GOOD, "tokens", ["a", "a"]),
        (GOOD, "tokens", ["a", 1]),
        (GOOD, "tokens", ["\ud800"]),
        (GOOD, "tokens", ["x" * 100_000]),
        (GOOD, "tokens", range(1 << 60)),
        (GOOD, "merges", None),
        (GOOD, "merges", [b"a b"]),
        (GOOD, "merges", range(1 << 60)),
        (GOOD, "token_type", [1]),
        (GOOD, "token_type", ["1"] * 257),
        (GOOD, "token_type", 3),
        (GOOD, "token_type", [6] * 257),
        (GOOD, "bos_token_id", 257),
        (GOOD, "bos_token_id", -1),
        (GOOD, "eos_token_id", "2"),
        (GOOD, "eot_token_id", 1 << 40),
        (GOOD, "eos_token_id", True),
        (GOOD, "add_bos_token", 1),
        (SPM, "scores", [0.0]),
        (SPM, "scores", [0.0, 1.0, float("nan"), 1.0]),
        (SPM, "scores", ["0"] * 4),
        (SPM, "add_space_prefix", "yes"),
        (SPM, "unknown_token_id", 4),
    ],
)
def test_the_wrong_field_is_named(base: dict[str, object], field: str, value: object) -> None:
    metadata = {**base, G + field: value}
    with pytest.raises(TokenizerError) as caught:
        load(metadata)
    assert caught.value.field == G + field
    assert caught.value.hint


def test_a_begin_token_that_is_wanted_but_missing() -> None:
    metadata = {G + "model": "gpt2", G + "pre": "llama-bpe", G + "tokens": ["a"], G + "merges": []}
    with pytest.raises(TokenizerError, match="bos_token_id"):
        load(metadata)


def test_merges_that_contradict_a_vocabulary_of_whole_words() -> None:
    with pytest.raises(TokenizerError, match="merges"):
        load({**GOOD, G + "pre": "llama-bpe", G + "merges": ["a b", "ab c"]})


def test_space_marks_without_byte_tokens() -> None:
    with pytest.raises(TokenizerError, match="<0x00>"):
        load({**GOOD, G + "pre": "gemma4"})
