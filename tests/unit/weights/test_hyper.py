"""Does a file whose numbers and tensors disagree say so before a weight is read?"""

from __future__ import annotations

import os
import struct
from math import prod
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile
from support.shapes import tiny
from unit.weights.models import F64, U64, Entry, gguf, look, make, refusal

F32_KIND = 6
NAN, INFINITE, DENORMAL = (struct.pack("<If", F32_KIND, value) for value in (float("nan"), float("inf"), 1e-40))
NEGATIVE = struct.pack("<Ii", 5, -2)
LARGEST = struct.pack("<IQ", U64, (1 << 64) - 1)

WRONG: list[tuple[str, object]] = [
    ("block_count", "2"), ("block_count", NEGATIVE), ("block_count", 0), ("block_count", None), ("block_count", 2.0),
    ("block_count", True), ("block_count", LARGEST), ("block_count", [2, 2]), ("block_count", 3), ("block_count", 1),
    ("embedding_length", "64"), ("embedding_length", 0), ("embedding_length", NEGATIVE), ("embedding_length", None),
    ("embedding_length", 63), ("embedding_length", LARGEST), ("embedding_length", [64, 65]), ("embedding_length", []),
    ("attention.head_count", 0), ("attention.head_count", "x" * 100_000), ("attention.head_count", None),
    ("attention.head_count", 5), ("attention.head_count", LARGEST), ("attention.head_count", [4.0, 4.0]),
    ("attention.head_count_kv", 3), ("attention.head_count_kv", 0), ("attention.head_count_kv", 8),
    ("attention.key_length", 0), ("attention.key_length", 17), ("attention.value_length", 8),
    ("attention.value_length", "16"), ("rope.dimension_count", 15), ("rope.dimension_count", 32),
    ("rope.dimension_count", 8), ("rope.scale_linear", 4.0), ("attention.causal", False),
    ("rope.freq_base", NAN), ("rope.freq_base", INFINITE), ("rope.freq_base", 0.0), ("rope.freq_base", -1.0),
    ("rope.freq_base", DENORMAL), ("rope.freq_base", "10000"), ("rope.freq_base", struct.pack("<Id", F64, 1e300)),
    ("attention.layer_norm_rms_epsilon", NAN), ("attention.layer_norm_rms_epsilon", -1e-5),
    ("attention.layer_norm_rms_epsilon", True), ("attention.layer_norm_rms_epsilon", [1e-5]),
    ("feed_forward_length", 127), ("feed_forward_length", None), ("feed_forward_length", LARGEST),
    ("context_length", 0), ("context_length", NEGATIVE), ("context_length", LARGEST), ("context_length", "long"),
    ("expert_count", 8), ("expert_count", "eight"),
    ("rope.scaling.type", "longrope"), ("rope.scaling.type", "x" * 100_000), ("rope.scaling.type", 7),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: str(value)[:24])
def test_a_wrong_number_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = make(tmp_path / "model.gguf", metadata={f"llama.{key}": value})
    error = refusal(path, BadModelFile)
    assert error.field and len(error.field) <= 200


@pytest.mark.parametrize("factor", [NAN, 0.0, -4.0, DENORMAL, "4"])
def test_a_scaling_that_is_no_positive_number_is_refused(tmp_path: Path, factor: object) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}
    refusal(make(tmp_path / "model.gguf", metadata=scaling), BadModelFile, "rope.scaling.factor")


YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}


@pytest.mark.parametrize(("key", "value"), [
    ("rope.freq_base", 1.0), ("rope.freq_base", 0.5), ("rope.scaling.factor", NAN),
    ("rope.scaling.original_context_length", 0), ("rope.scaling.yarn_beta_fast", 0.0),
    ("rope.scaling.yarn_beta_slow", NAN), ("rope.scaling.attn_factor", -1.0)])
def test_numbers_of_yarn_that_cannot_be_are_refused(tmp_path: Path, key: str, value: object) -> None:
    refusal(make(tmp_path / "model.gguf", metadata={**YARN, f"llama.{key}": value}), BadModelFile, key)


@pytest.mark.parametrize("window", [0, NEGATIVE, LARGEST, "512", [512, 256]])
def test_a_window_that_sees_nothing_is_refused_where_windows_are_applied(tmp_path: Path, window: object) -> None:
    made = make(tmp_path / "gemma.gguf", tiny("gemma3"), metadata={"gemma3.attention.sliding_window": window})
    refusal(made, BadModelFile, "attention.sliding_window")
    assert look(make(tmp_path / "llama.gguf", metadata={"llama.attention.sliding_window": window})).layers == 2


@pytest.mark.parametrize(("key", "value"), [
    ("expert_count", None), ("expert_count", 0), ("expert_count", NEGATIVE), ("expert_count", LARGEST),
    ("expert_count", 7), ("expert_count", 9), ("expert_count", "8"), ("expert_used_count", 0),
    ("expert_used_count", 9), ("expert_used_count", LARGEST), ("expert_used_count", None),
    ("expert_feed_forward_length", 127), ("expert_feed_forward_length", 0), ("expert_feed_forward_length", None)])
def test_numbers_of_experts_that_cannot_be_are_refused(tmp_path: Path, key: str, value: object) -> None:
    """Eight experts of 128, of which three serve a token."""
    made = make(tmp_path / "moe.gguf", tiny("qwen3moe"), metadata={f"qwen3moe.{key}": value})
    error = refusal(made, BadModelFile)
    assert error.field in (key, "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_exps.weight"), error.field


def test_what_experts_find_of_a_row_is_bounded(tmp_path: Path) -> None:
    """A sparse file could ask for gigabytes of activations."""
    made = make(tmp_path / "moe.gguf", tiny("qwen3moe"), metadata={"qwen3moe.embedding_length": 1 << 19})
    assert refusal(made, BadModelFile).field == "expert_used_count"


@pytest.mark.parametrize("without", ["blk.0.ffn_gate_inp.weight", "blk.1.ffn_up_exps.weight", "*_exps.weight"])
def test_experts_without_a_router_or_a_part_are_named(tmp_path: Path, without: str) -> None:
    refusal(make(tmp_path / "moe.gguf", tiny("qwen3moe"), without=[without]), BadModelFile,
            without.rpartition("*_")[2])


def test_experts_of_other_counts_are_refused_before_anything_is_cut(tmp_path: Path) -> None:
    """Shapes that lie: one tensor of more experts than the others, of more than there may be, of no dimension more."""
    for shape, name in (((64, 128, 9), "9 experts"), ((64, 128, 1 << 20), "1048576 experts"), ((64, 1024), "unknown")):
        entries = [Entry("token_embd.weight", (64, 300)), Entry("output_norm.weight", (64,)),
                   Entry("blk.0.ffn_gate_exps.weight", (64, 128, 8)), Entry("blk.0.attn_norm.weight", (64,)),
                   Entry("blk.0.ffn_up_exps.weight", shape)]
        path, offset = tmp_path / "lies.gguf", 0
        placed = []
        for entry in entries:
            placed.append(Entry(entry.name, entry.dims, 0, offset))
            offset += 4 * prod(entry.dims)
        metadata = {"general.architecture": "qwen3moe", "qwen3moe.block_count": 1}
        path.write_bytes(gguf(metadata, placed))
        os.truncate(path, path.stat().st_size + offset)
        refusal(path, BadModelFile, *([name] if name != "unknown" else []))


def test_more_experts_than_a_model_may_have_are_refused_at_once(tmp_path: Path) -> None:
    """A small file of tiny experts: each would be a piece, and there are two hundred thousand."""
    path, placed, offset = tmp_path / "many.gguf", [], 0
    for layer in range(200):
        placed.append(Entry(f"blk.{layer}.ffn_up_exps.weight", (1, 1, 1024), 0, offset))
        offset += 4096
    path.write_bytes(gguf({"general.architecture": "qwen3moe", "qwen3moe.block_count": 200}, placed, data=offset))
    assert refusal(path, BadModelFile, "204800 experts").field == "expert_count"


@pytest.mark.parametrize("architecture", ["mamba", "x" * 10_000, "llama\n"])
def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path, architecture: str) -> None:
    path = make(tmp_path / "model.gguf", architecture=architecture)
    assert "qwen3" in refusal(path, BadModelFile, "general.architecture").hint


@pytest.mark.parametrize("without", ["token_embd.weight", "output_norm.weight", "blk.1.ffn_up.weight", "blk.1.*",
                                     "blk.0.attn_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, without: str) -> None:
    named = without if "*" not in without else "layer 1"
    refusal(make(tmp_path / "model.gguf", without=[without]), BadModelFile, named)


def test_qwen_needs_its_biases_and_norms(tmp_path: Path) -> None:
    refusal(make(tmp_path / "2.gguf", tiny("qwen2"), without=["*.attn_k.bias"]), BadModelFile, "blk.0.attn_k.bias")
    refusal(make(tmp_path / "3.gguf", tiny("qwen3"), without=["*attn_q_norm*"]), BadModelFile, "attn_q_norm")


def with_extra(path: Path, name: str, columns: int) -> Path:
    """A tiny model with one more vector at the end of the file."""
    from nvstreamd.weights.packed import gguf as reader
    from unit.weights.models import opened

    source = make(path.with_name("source.gguf"))
    with opened(source) as files:
        metadata, tensors, base = reader.read_header(files[0])
        data = source.read_bytes()[base:]
    keys = [(key, value) for key, value in metadata.items() if key != "general.alignment"]
    table = [Entry(t.name, t.shape[::-1], t.type.id, t.offset) for t in tensors]
    entry = Entry(name, (columns,), offset=-(-len(data) // 32) * 32)
    path.write_bytes(gguf(keys, [*table, entry]) + data.ljust(entry.offset, b"\0") + bytes(4 * columns))
    return path


def test_an_optional_bias_is_accepted(tmp_path: Path) -> None:
    assert look(with_extra(tmp_path / "model.gguf", "blk.1.attn_output.bias", 64)).layers == 2


@pytest.mark.parametrize(("name", "columns"), [
    ("blk.1.attn_output.bias", 63), ("blk.0.attn_q.bias", 1), ("blk.2.attn_q.bias", 64), ("blk.00.attn_q.bias", 64),
    ("blk.x.attn_q.bias", 64), ("blk.0.attn_norm_2.weight", 64), ("blk.0.ffn_up.bias", 128), ("unheard.of", 8),
    ("rope_freqs.weight", 7), ("x" * 60_000, 8),
])
def test_a_tensor_that_does_not_belong_is_named(tmp_path: Path, name: str, columns: int) -> None:
    """Ignored it would be another model's answer; of another shape it would end the engine in mid-stream."""
    refusal(with_extra(tmp_path / "model.gguf", name, columns), BadModelFile, name[:100])


def test_a_vocabulary_without_end_is_refused_before_its_pieces_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    rows = 1 << 38
    table = [Entry("token_embd.weight", (32, rows), type=2), Entry("blk.0.x", (8,), offset=rows * 18)]
    path.write_bytes(gguf({"general.architecture": "llama", "llama.block_count": 1}, table))
    with path.open("r+b") as file:
        file.truncate(rows * 18 + (1 << 20))
    refusal(path, BadModelFile, "token_embd.weight", "rows")


def test_a_description_is_text_or_nothing(tmp_path: Path) -> None:
    assert look(make(tmp_path / "a.gguf", metadata={"general.name": "x" * 1000})).description == "x" * 200
    assert look(make(tmp_path / "b.gguf", metadata={"general.name": [1] * 1000})).description == ""
