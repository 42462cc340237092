"""Which tokens end a generation, hide from the reader or are found in text? As llama.cpp decides it."""

from __future__ import annotations

import pytest

from nvstreamd.engine.tokenizer import load
from nvstreamd.engine.tokenizer import special_names as names
from nvstreamd.engine.tokenizer.pieces import byte_alphabet
from unit.tokenizer.pairs import G, MakePair

KNOWN = sorted(
    {
        *names.END_OF_TURN, *names.END_OF_MESSAGE, *names.END_OF_GENERATION, *names.ALWAYS_SHOWN,
        *names.FIM_PREFIX, *names.FIM_SUFFIX, *names.FIM_MIDDLE, *names.FIM_PAD, *names.FIM_REPOSITORY,
        *names.FIM_SEPARATOR, "<|plamo:eos|>", "<|im_start|>", "<s>", "<|unused1|>", "<|observation|>",
    }
)  # fmt: skip
BASE = list(byte_alphabet().values())
MARKS = {*names.ALWAYS_SHOWN, "<|end|>"}


def _metadata(*special: str, kind: int = 3, **extra: object) -> dict[str, object]:
    tokens = [*BASE, "zz1", "zz2", *special]
    return {
        G + "model": "gpt2", G + "pre": "gpt-2", G + "tokens": tokens, G + "merges": ["a b"],
        G + "token_type": [1] * 257 + [3] + [kind] * len(special), G + "eos_token_id": 257, **extra,
    }  # fmt: skip


def _assert_equal(make_pair: MakePair, metadata: dict[str, object], text: str) -> None:
    ours, oracle = make_pair(metadata)
    for token in range(len(oracle)):
        assert (token in ours.eog_ids) == oracle.is_eog(token)
        for special in (False, True):
            assert ours.token_bytes(token, special) == oracle.token_to_piece(token, special)
    assert ours.encode(text, False, True) == oracle.tokenize(text, False, True)
    plain = ours.encode(text, False, False)
    found = oracle.tokenize(text, False, False)
    marks = {token for token in found if ours.token_bytes(token).decode("latin-1") in MARKS}
    if marks:
        # llama.cpp finds these in any text; then a user could begin a message in somebody else's name.
        assert marks.isdisjoint(plain) and ours.decode(plain) == text
    else:
        assert plain == found


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_each_known_text(make_pair: MakePair, kind: int) -> None:
    for text in KNOWN:
        _assert_equal(make_pair, _metadata(text, kind=kind), f"a {text}  b{text}")


@pytest.mark.parametrize(
    "special",
    [
        ("<|return|>", "<|call|>", "<|end|>", "<|channel|>"),
        ("<|flush|>", "<|calls|>", "<|end|>"),
        ("<|return|>", "<|end|>"),
        ("<|tool_response>", "</s>", "<eos>"),
    ],
)
def test_texts_that_change_each_other(make_pair: MakePair, special: tuple[str, ...]) -> None:
    _assert_equal(make_pair, _metadata(*special), " x ".join(special))


def test_the_longest_special_token_wins_even_from_the_right(make_pair: MakePair) -> None:
    _assert_equal(make_pair, _metadata("<ab>", "<ab><c", "b><cd>e"), "x<ab><cd>e <ab><c <ab>")


def test_phi_3_swallows_white_space_after_special_tokens(make_pair: MakePair) -> None:
    texts = ("<|user|>", "</s>", "<|endoftext|>", "<unk>", "<s>")
    metadata = _metadata(*texts, **{"general.name": "Phi-3-mini"})
    _assert_equal(make_pair, metadata, "".join(f"{text} \n\t\u00a0 x " for text in texts))


def test_a_mask_swallows_white_space_before_it(make_pair: MakePair) -> None:
    metadata = {**_metadata("<mask>"), G + "pre": "jina-v2-de"}
    _assert_equal(make_pair, metadata, "a \n <mask>  b<mask>")


def test_merges_and_bytes_that_are_no_tokens(make_pair: MakePair) -> None:
    tokens = [char for char in BASE if char not in "xĠé"] + ["ab", "cd"]
    merges = ["a b", "c d", "ab cd", "e f", "x y", "broken", " a", "a ", "q r s"]
    metadata: dict[str, object] = {
        G + "model": "gpt2", G + "pre": "gpt-2", G + "tokens": tokens, G + "merges": merges,
    }  # fmt: skip
    _assert_equal(make_pair, metadata, "abcd ef xy x éb qrs a b abcde")


def test_empty_and_nul_tokens(make_pair: MakePair) -> None:
    _assert_equal(make_pair, _metadata("", "nul\0tail", kind=1), "nul tail")


def test_special_ids_the_file_names(make_pair: MakePair) -> None:
    extra = {G + "eot_token_id": 100, G + "eom_token_id": 101, G + "fim_pad_token_id": 102}
    metadata = _metadata("<|im_end|>", **extra)
    _assert_equal(make_pair, metadata, "a")
    assert load(metadata).eot_id == 100
