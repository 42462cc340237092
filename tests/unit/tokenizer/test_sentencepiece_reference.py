"""Are the ids of SentencePiece vocabularies those of the `sentencepiece` library, which models are trained with?"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from nvstreamd.engine.tokenizer import Tokenizer, load
from support.llamacpp import LlamaCpp
from unit.tokenizer.corpus import FUZZ_ALPHABET, TEXTS
from unit.tokenizer.pairs import G, MakePair
from unit.tokenizer.sentencepiece_model import CONTROL, NORMAL, UNUSED, reference
from unit.tokenizer.test_sentencepiece import BYTES, spm

WORDS = [" ", "  ", "   ", "\n", "\n\n", "\t", "a", "b", "the", " the", "é", "\u200d",
         "👩", "👩\u200d👩",
         "<s>", "</s>", "<unk>", "<defined>", "<|user|>", "<0x0A>", "▁", "日本", "x1",
         "\r\n", "e\u0301", "\0", "<", "s>",
         "</"]  # fmt: skip


def made(kind: str, *more: tuple[str, int]) -> dict[str, object]:
    """The vocabulary of the other tests, its types as they come into force, and some more tokens."""
    metadata = spm(kind, {})
    tokens, scores, types = (metadata[G + name] for name in ("tokens", "scores", "token_type"))
    assert isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list)
    types[tokens.index("<|endoftext|>")] = CONTROL
    for n, (text, token_type) in enumerate(each for each in more if each[0] not in tokens):
        tokens.append(text)
        types.append(token_type)
        scores.append(0.5 - n)
    return metadata


def fuzz() -> list[str]:
    source = random.Random(11)
    mixed = ["".join(source.choices(WORDS, k=source.randint(1, 30))) for _ in range(300)]
    return mixed + ["".join(source.choices(FUZZ_ALPHABET, k=source.randint(1, 60))) for _ in range(200)]


def by_reference(metadata: dict[str, object], text: str, specials: Sequence[str]) -> list[int]:
    """The ids of a text with special tokens in it: each stretch between by SentencePiece, a space before the first."""
    first, rest = reference(metadata, True), reference(metadata, False)
    tokens = metadata[G + "tokens"]
    assert isinstance(tokens, list)
    ids: list[int] = []
    for n, part in enumerate(re.split(f"({'|'.join(map(re.escape, specials))})", text)):
        ids += [tokens.index(part)] if n % 2 else (rest if n else first).Encode(part)
    return ids


@pytest.mark.parametrize("kind", ["rank", "ties", "random"])
def test_plain_text(kind: str) -> None:
    metadata = made(kind)
    theirs, ours = reference(metadata, True), load(metadata)
    for text in (*TEXTS, *fuzz()):
        if text.startswith("<defined>"):
            continue  # whether a space comes before a word of this kind is asked below
        assert ours.encode(text, False, False) == theirs.Encode(text), text


def test_text_between_special_tokens() -> None:
    """llama.cpp puts a space before each of these stretches: "</s> b" has two there, and models never saw that."""
    metadata = made("rank")
    ours = load(metadata)
    for text in ("a</s>b", "a</s> b", "a </s>  b", "a<|user|>\nb", "</s>b", " </s> <s>  <s>b", "<|user|> a<|user|>b "):
        expected = by_reference(metadata, text, ["</s>", "<s>", "<|user|>"])
        assert ours.encode(text, False, True) == expected, text


def test_a_space_is_put_before_the_text_and_nowhere_else(make_pair: MakePair) -> None:
    metadata = made("rank")
    ours, oracle = make_pair(metadata)
    for text, same in (("a", True), (" a", True), ("<s>a", False), ("a</s>b", False), ("a<defined>b", False)):
        ids = ours.encode(text, True, True)
        assert (ids == oracle.tokenize(text, True, True)) is same, text
        assert ours.decode(ids, special=True) == ("<s> " + text if not text.startswith("<") else "<s>" + text)


def test_parts_of_a_conversation_get_no_space_between_them() -> None:
    ours = load(made("rank"))
    ids = ours.encode_parts([("<|user|>", True), ("a b", False), ("<|user|>", True), ("c", False)], True)
    assert ours.decode(ids, special=True) == "<s><|user|>a b<|user|>c"


def control_of(ours: Tokenizer) -> set[int]:
    return {token for token in range(ours.vocab_size) if not ours.token_bytes(token)}


def test_characters_never_merge_into_a_control_token(make_pair: MakePair) -> None:
    """llama.cpp lets them: then a user who writes "<s>" begins a text, though nothing was to be parsed."""
    metadata = made("rank", *((text, NORMAL) for text in ("<s", "</", "</s", "<unk", "<u", "nk")))
    ours, oracle = make_pair(metadata)
    theirs = reference(metadata, True)
    for text in ("µ<s>", "a</s>b", "x<unk>y <s></s>"):
        ids = ours.encode(text, False, False)
        assert ids == theirs.Encode(text)
        assert control_of(ours).isdisjoint(ids) and ours.decode(ids) == " " + text
    assert not control_of(ours).isdisjoint(oracle.tokenize("µ<s>", False, False))


def test_unused_tokens_are_taken_apart_again(make_pair: MakePair) -> None:
    metadata = made("rank", ("qz", UNUSED), ("qzq", UNUSED), ("qzqz", NORMAL), ("jq", NORMAL), ("jqzq", UNUSED))
    theirs, ours = reference(metadata, True), load(metadata)
    for text in ("qz", "qzq", "qzqz", "qzqzq", "jqzq", "aqzqzqzb jq qzq"):
        assert ours.encode(text, False, False) == theirs.Encode(text), text


def test_bytes_for_what_is_no_token(make_pair: MakePair) -> None:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "▁a"]
    metadata: dict[str, object] = {
        G + "model": "llama", G + "tokens": tokens, G + "scores": [0.0] * len(tokens),
        G + "token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
    }  # fmt: skip
    theirs, ours = reference(metadata, True), load(metadata)
    for text in ("é", "👩\u200d👩", "a\nb\ta", " \u00a0a", "<0x41>", "\ufffd\0"):
        assert ours.encode(text, False, False) == theirs.Encode(text), text


def test_a_word_at_the_very_beginning_has_no_space_before_it(make_pair: MakePair) -> None:
    """Here the libraries differ among themselves: SentencePiece puts one, Hugging Face's and llama.cpp do not."""
    metadata = made("rank")
    oracle: LlamaCpp
    ours, oracle = make_pair(metadata)
    assert ours.encode("<defined>", False, False) == oracle.tokenize("<defined>") == reference(
        metadata, False).Encode("<defined>")  # fmt: skip
