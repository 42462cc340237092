"""Are the ids of vocabularies with U+2581 for spaces (SPM, and BPE like it) llama.cpp's?"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nvstreamd.engine.tokenizer import TokenizerError, load
from unit.tokenizer.corpus import FUZZ_ALPHABET, TEXTS
from unit.tokenizer.pairs import G, MakePair

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HEAD = ["<unk>", "<s>", "</s>", *BYTES]
SPECIALS = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>")
SPECIAL_TEXT = "a <|user|>  b<defined> \n c</s> d <s> e"


def _learned() -> tuple[list[str], list[str]]:
    """Characters and frequent stretches of the corpus."""
    text = "▁".join(TEXTS).replace(" ", "▁").replace("\0", "")
    counts = Counter(text[i : i + n] for n in range(2, 7) for i in range(len(text) - n))
    return sorted(set(text))[:400], [word for word, _ in counts.most_common(3000)]


def _fuzz() -> list[str]:
    source = random.Random(7)
    return ["".join(source.choices(FUZZ_ALPHABET + "▁", k=source.randint(1, 80))) for _ in range(150)]


def _scores(kind: str, tokens: list[str]) -> list[float]:
    source = random.Random(3)
    by_kind = {
        "rank": lambda i, _: -float(i),
        "ties": lambda _, text: -float(len(text) % 3),
        "random": lambda *_: source.random(),
    }
    return [by_kind[kind](i, text) for i, text in enumerate(tokens)]


def spm(kind: str, extra: dict[str, object]) -> dict[str, object]:
    chars, words = _learned()
    tokens = list(dict.fromkeys([*HEAD, *chars, *words, "▁▁", "▁▁▁▁", "<|endoftext|>"]))
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - len(HEAD)), 3, 4]
    tokens += ["<|user|>", "<defined>"]
    return {
        G + "model": "llama", G + "tokens": tokens, G + "token_type": types,
        G + "scores": _scores(kind, tokens), **extra,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["rank", "ties", "random"])
@pytest.mark.parametrize(
    "extra",
    [{}, {G + "add_space_prefix": False, G + "add_eos_token": True}, {"general.name": "Phi-3 mini"}],
    ids=["plain", "flags", "phi-3"],
)
def test_sentencepiece(make_pair: MakePair, kind: str, extra: dict[str, object]) -> None:
    ours, oracle = make_pair(spm(kind, extra))
    # llama.cpp puts a space behind each special token, we put one before the text: so it is asked without any.
    _, bare = make_pair(spm(kind, {**extra, G + "add_space_prefix": False}))
    control = {token for token in range(ours.vocab_size) if not ours.token_bytes(token)}
    for text in (*TEXTS, *_fuzz(), SPECIAL_TEXT):
        for parse_special in (False, True):
            begins_special = any(text.startswith(each) for each in (*(SPECIALS if parse_special else ()), "<defined>"))
            prefix = " " if ours.add_space_prefix and text and not begins_special else ""
            theirs = bare.tokenize(prefix + text, True, parse_special)
            if not parse_special and not control.isdisjoint(bare.tokenize(prefix + text)):
                # llama.cpp merges characters into control tokens; test_sentencepiece_reference has these texts, too.
                assert control.isdisjoint(ours.encode(text, False, False))
            else:
                assert ours.encode(text, True, parse_special) == theirs, text
    for token in range(len(oracle)):
        for special in (False, True):
            assert ours.token_bytes(token, special) == oracle.token_to_piece(token, special)
    assert ours.eog_ids == {token for token in range(len(oracle)) if oracle.is_eog(token)}


def test_a_character_without_bytes_is_said_not_dropped() -> None:
    ours = load({G + "model": "llama", G + "tokens": ["<unk>", "<s>", "</s>", "▁", "a"]})
    assert ours.encode("a", False, False) == [3, 4]
    with pytest.raises(TokenizerError, match="'é'"):
        ours.encode("é", False, False)


def test_a_long_word_is_encoded_whole() -> None:
    ours = load(spm("rank", {}))
    text = "ab" * 50_000 + " " * 50_000
    assert ours.decode(ours.encode(text, False, False)) == " " + text


def _marked_bpe(pre: str) -> dict[str, object]:
    chars, words = _learned()
    tokens = list(dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, *chars, "\n"]))
    known, merges = set(tokens), []
    for word in words:
        cut = next((i for i in range(1, len(word)) if {word[:i], word[i:]} <= known), 0)
        if cut and word not in known and "\n" not in word:
            known.add(word)
            tokens.append(word)
            merges.append(f"{word[:cut]} {word[cut:]}")
    tokens += ["\n\n", "\n\n\n", "<control>"]
    types = [3] * 4 + [6] * 256 + [1] * (len(tokens) - 261) + [3]
    return {
        G + "model": "gpt2", G + "pre": pre, G + "tokens": tokens, G + "token_type": types,
        G + "merges": merges, G + "bos_token_id": 2, G + "eos_token_id": 1,
    }  # fmt: skip


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("pre", ["gemma4", "granite-embed-multi-311m", "sarvam-moe"])
def test_bpe_with_space_marks(make_pair: MakePair, pre: str, add_bos: bool) -> None:
    ours, oracle = make_pair({**_marked_bpe(pre), G + "add_bos_token": add_bos})
    for text in (*TEXTS, *_fuzz(), "a<control>\n\n\nb\n\n"):
        assert ours.encode(text, True, True) == oracle.tokenize(text, True, True), text
    for token in range(len(oracle)):
        assert ours.token_bytes(token) == oracle.token_to_piece(token)


def test_gemma4_by_its_model_name(make_pair: MakePair) -> None:
    ours, oracle = make_pair({**_marked_bpe("ignored"), G + "model": "gemma4"})
    for text in TEXTS:
        assert ours.encode(text, True, True) == oracle.tokenize(text, True, True), text
