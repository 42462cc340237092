"""Does every `tokenizer.ggml.pre` cut text as llama.cpp does? A model fed with other ids answers badly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nvstreamd.engine.tokenizer import TokenizerError, load, supported_pre_tokenizers, vocabulary
from nvstreamd.engine.tokenizer.bpe import Bpe
from nvstreamd.engine.tokenizer.pre_tokenizers import find
from support.llamacpp import LlamaCpp
from support.vocab_gguf import write_vocab
from unit.tokenizer.corpus import FUZZ_ALPHABET, TEXTS

PRE = "tokenizer.ggml.pre"
SPACE_MARKED = {"gemma4", "granite-embed-multi-311m", "sarvam-moe"}
BYTE_LEVEL = [name for name in supported_pre_tokenizers() if name not in SPACE_MARKED]
FAMILIES = list({find(name): name for name in BYTE_LEVEL}.values())
# One name of each way to cut is tried by `make unit`, the others, which are cut by the same, by `make test`.
NAMES = [pytest.param(name, marks=[] if name in FAMILIES else [pytest.mark.thorough]) for name in BYTE_LEVEL]


def _fuzz(name: str) -> list[str]:
    source = random.Random(name)
    return [
        "".join(source.choices(FUZZ_ALPHABET, k=source.randint(1, 60)))
        for _ in range(40 if name in FAMILIES else 5)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_llama_cpp(
    name: str, tmp_path: Path, witness: dict[str, object], witness_bytes: dict[str, object]
) -> None:
    ours = load({**witness, PRE: name})
    path = write_vocab(tmp_path / "v.gguf", {**witness_bytes, PRE: name})
    with LlamaCpp(path, vocab_only=True) as oracle:
        assert ours.add_bos == oracle.facts()["add_bos"]
        for text in (*TEXTS, "wxyz wxyz", *_fuzz(name)):
            assert ours.encode(text, True, False) == oracle.tokenize(text, True, False), text


def test_an_unknown_name_is_refused_with_the_known_ones(witness: dict[str, object]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre.*'gpt-9'.*llama-bpe.*qwen2"):
        load({**witness, PRE: "gpt-9"})


def test_llama_cpp_refuses_what_we_refuse(tmp_path: Path, witness_bytes: dict[str, object]) -> None:
    with pytest.raises(RuntimeError):
        LlamaCpp(write_vocab(tmp_path / "v.gguf", {**witness_bytes, PRE: "gpt-9"}), vocab_only=True)


def test_a_missing_name_is_said(
    tmp_path: Path, witness: dict[str, object], witness_bytes: dict[str, object]
) -> None:
    ours = load(witness)
    assert any("tokenizer.ggml.pre is missing" in note for note in ours.notes)
    with LlamaCpp(write_vocab(tmp_path / "v.gguf", witness_bytes), vocab_only=True) as oracle:
        for text in TEXTS:
            assert ours.encode(text, True, False) == oracle.tokenize(text, True, False), text


@pytest.mark.thorough
def test_a_run_that_the_library_gives_up_on_is_an_error_and_no_panic(witness: dict[str, object]) -> None:
    tekken = find("tekken")
    assert tekken is not None
    core = Bpe(witness, vocabulary.read(witness, vocabulary.Defaults()), tekken)
    # Longer than `Tokenizer.encode` lets through: this is the second line of defence.
    with pytest.raises(ValueError, match="long runs"):
        core.encode("A" * 11_000_000)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_a_hostile_text_is_encoded_whole(name: str, witness: dict[str, object]) -> None:
    # A splitter of quadratic time would not come back from these; one whose limit is hit would lose text.
    ours = load({**witness, PRE: name})
    for run in (" ", "7", "x"):
        text = "a" + run * 100_000 + "b"
        assert ours.decode(ours.encode(text, False, False)) == text
