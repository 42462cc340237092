"""What do the tokenizer tests share? The real vocabulary, and witnesses that make every cut visible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nvstreamd.engine.tokenizer import load
from nvstreamd.engine.tokenizer.pieces import byte_alphabet
from support.files import SMOLLM2
from support.llamacpp import LlamaCpp
from support.vocab_gguf import encode_value, read_metadata, write_vocab
from unit.tokenizer.pairs import G, MakePair, Pair


@pytest.fixture(scope="session")
def real_metadata() -> dict[str, object]:
    """The real model's metadata."""
    return read_metadata(SMOLLM2)


@pytest.fixture(scope="session")
def real(real_metadata: dict[str, object]) -> Iterator[Pair]:
    """Ours and llama.cpp's tokenizer of the real model."""
    with LlamaCpp(SMOLLM2, vocab_only=True) as oracle:
        yield load(real_metadata), oracle


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[MakePair]:
    """Ours and llama.cpp's tokenizer of any metadata."""
    opened: list[LlamaCpp] = []

    def make(metadata: dict[str, object]) -> Pair:
        opened.append(LlamaCpp(write_vocab(tmp_path / f"{len(opened)}.gguf", metadata), vocab_only=True))
        return load(metadata), opened[-1]

    yield make
    for oracle in opened:
        oracle.close()


def _witness_merges() -> tuple[list[str], list[str]]:
    alphabet = byte_alphabet()
    lead = (0xC2, 0xC3, 0xCC, 0xCD, 0xD0, 0xD9, 0xE0, 0xE2, 0xE3, 0xE4, 0xE6, 0xED, 0xF0, 0x9F, 0x98)
    letters = "abdelmrstvxyzABDELMRSTVXYZ"
    ascii_bytes = [b for b in (*range(9, 14), *range(32, 127)) if not chr(b).isalpha() or chr(b) in letters]
    paired = [alphabet[b] for b in (*ascii_bytes, *lead, *range(0x80, 0x88), *range(0xA0, 0xA4))]
    paired = list(dict.fromkeys(paired))
    digits = "0123456789"
    merges = [(a, b) for a in paired for b in paired]
    merges += [(a + b, c) for a in digits for b in digits for c in digits]
    return list(alphabet.values()), [f"{left} {right}" for left, right in merges]


@pytest.fixture(scope="session")
def witness() -> dict[str, object]:
    """A byte-level vocabulary in which neighbouring bytes always merge, so that a moved cut changes the ids.

    Three digits merge too; and 'wxyz' is a token that no merge makes, which shows who ignores merges.
    """
    base, merges = _witness_merges()
    tokens = [*base, *(merge.replace(" ", "") for merge in merges), "wxyz", "Ġwxyz"]
    return {
        G + "model": "gpt2",
        G + "tokens": tokens,
        G + "merges": merges,
        G + "bos_token_id": 1,
        G + "eos_token_id": 2,
        G + "seperator_token_id": 3,
    }


@pytest.fixture(scope="session")
def witness_bytes(witness: dict[str, object]) -> dict[str, object]:
    """The same with the big arrays already encoded for a file."""
    arrays = {key: encode_value(witness[key]) for key in (G + "tokens", G + "merges")}
    return {**witness, **arrays}
