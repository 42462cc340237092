"""Where does a model of any shape and type come from when none may be downloaded? Random weights in a GGUF.

Weights are scaled so that activations neither vanish nor overflow (standard deviation 1/sqrt(columns)). A tensor is
written as slices of one buffer of random blocks, each tensor starting elsewhere in it: as fast as the disk, in memory
of a few buffers, whatever the file's size. `python -m support.random_gguf --help` writes one from the command line.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import BinaryIO, Protocol

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from support.random_blocks import BlockSource
from support.shapes import FAMILIES, HEAD_NORMS, PRESETS, TINY, Shape
from support.vocab_gguf import encode_string, encode_value
from support.vocabularies import real_vocabulary, synthetic_vocabulary

MAGIC = b"GGUF"
UINT16, INT32 = 2, 5


@dataclass(frozen=True, slots=True)
class Options:
    """How a shape is written.

    `types`: {name pattern: type} for matrices that differ from `type`; norms and biases are F32 unless a pattern
    names them. `vocabulary`: tokenizer metadata (see `support.vocabularies`). `rope_freqs`: factors of
    rope_freqs.weight, head_dim / 2 of them. `parts` above 1 splits the file. `architecture` overrides
    general.architecture, `metadata` any key (None takes it away), `without` leaves out tensors by name pattern.
    """

    type: GgmlType = ggml.F16
    types: Mapping[str, GgmlType] = field(default_factory=dict)
    seed: int = 1
    vocabulary: Mapping[str, object] = field(default_factory=synthetic_vocabulary)
    rope_freqs: Sequence[float] = ()
    parts: int = 1
    alignment: int = 32
    version: int = 3
    architecture: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    without: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write. `shape` is (rows, columns), (columns,), or (experts, rows, columns)."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, padding not counted."""
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def llama3_factors(shape: Shape) -> tuple[float, ...]:
    """Factors like those of Llama 3.1: 1 for fast rotations, 8 for slow ones, a ramp between."""
    half = shape.head_dim // 2
    return tuple(1.0 + 7.0 * min(1.0, max(0.0, (2 * i - half / 2) / half)) for i in range(half))


def _layer(shape: Shape) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (shape.width,),
        "attn_q.weight": (queries, shape.width),
        "attn_k.weight": (keys, shape.width),
        "attn_v.weight": (keys, shape.width),
        "attn_output.weight": (shape.width, queries),
        "ffn_norm.weight": (shape.width,),
        **_feed_forward(shape),
    }
    if shape.family == "qwen2":
        tensors |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if shape.family == "gemma3":
        tensors |= {"post_attention_norm.weight": (shape.width,), "post_ffw_norm.weight": (shape.width,)}
    if shape.family in HEAD_NORMS:
        tensors |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
    return tensors


def _feed_forward(shape: Shape) -> dict[str, tuple[int, ...]]:
    if not shape.experts:
        return {"ffn_gate.weight": (shape.feed_forward, shape.width),
                "ffn_up.weight": (shape.feed_forward, shape.width),
                "ffn_down.weight": (shape.width, shape.feed_forward)}
    return {"ffn_gate_inp.weight": (shape.experts, shape.width),
            "ffn_gate_exps.weight": (shape.experts, shape.feed_forward, shape.width),
            "ffn_up_exps.weight": (shape.experts, shape.feed_forward, shape.width),
            "ffn_down_exps.weight": (shape.experts, shape.width, shape.feed_forward)}


def tensor_plans(shape: Shape, options: Options) -> list[TensorPlan]:
    """Every tensor of the model, in the order of the file."""
    tokens = options.vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    table = (len(tokens), shape.width)
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": table}
    if options.rope_freqs:
        tensors["rope_freqs.weight"] = (len(options.rope_freqs),)
    for layer in range(shape.layers):
        tensors |= {f"blk.{layer}.{name}": dimensions for name, dimensions in _layer(shape).items()}
    tensors["output_norm.weight"] = (shape.width,)
    if not shape.tied:
        tensors["output.weight"] = table
    return [
        TensorPlan(name, _type_of(name, len(dimensions), options), dimensions)
        for name, dimensions in tensors.items()
        if not any(fnmatchcase(name, pattern) for pattern in options.without)
    ]


def _type_of(name: str, dimensions: int, options: Options) -> GgmlType:
    named = [kind for pattern, kind in options.types.items() if fnmatchcase(name, pattern)]
    # Converters leave routers as they are.
    whole = dimensions < 2 or name.endswith("ffn_gate_inp.weight")
    return named[0] if named else ggml.F32 if whole else options.type


def hyperparameters(shape: Shape, options: Options) -> dict[str, object]:
    """All metadata but the tokenizer's. Files of the Mistral family say `llama`, as the released ones do."""
    arch = options.architecture or ("llama" if shape.family == "mistral" else shape.family)
    own: dict[str, object] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_base,
    }
    if shape.window:
        own["attention.sliding_window"] = shape.window
    if shape.experts:
        own |= {"expert_count": shape.experts, "expert_used_count": shape.used,
                "expert_feed_forward_length": shape.feed_forward}
    general = {
        "general.architecture": arch,
        "general.name": f"random {shape.family}",
        "general.alignment": options.alignment,
        "general.quantization_version": 2,
    }
    return {**general, **{f"{arch}.{key}": value for key, value in own.items()}}


def _align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _header(metadata: Mapping[str, object], tensors: Sequence[TensorPlan], options: Options) -> bytes:
    """Magic to the end of the tensor table, padded."""
    pairs = {key: value for key, value in metadata.items() if value is not None}
    pieces = [MAGIC, struct.pack("<IQQ", options.version, len(tensors), len(pairs))]
    pieces += [encode_string(key) + encode_value(value) for key, value in pairs.items()]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        pieces += [
            encode_string(tensor.name),
            struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.type.id, offset),
        ]
        offset = _align(offset + tensor.nbytes, options.alignment)
    header = b"".join(pieces)
    return header.ljust(_align(len(header), options.alignment), b"\0")


def _divided(tensors: Sequence[TensorPlan], parts: int) -> Iterator[list[TensorPlan]]:
    """`parts` runs of tensors of about equal size."""
    total, done, number = sum(tensor.nbytes for tensor in tensors), 0, 1
    run: list[TensorPlan] = []
    for index, tensor in enumerate(tensors):
        run.append(tensor)
        done += tensor.nbytes
        left = len(tensors) - index - 1
        if number < parts and (done >= total * number / parts or left == parts - number):
            yield run
            run, number = [], number + 1
    yield run


class Source(Protocol):
    """What tensors are made of."""

    def content(self, name: str, kind: GgmlType, shape: tuple[int, ...], rope_freqs: Sequence[float]
                ) -> Iterator[memoryview]:
        """The bytes of one tensor, in pieces."""


def write(path: Path, shape: Shape, options: Options | None = None, blocks: Source | None = None) -> list[Path]:
    """Writes the model; returns its files in order. With several parts `path` NAME.gguf gives the stem.

    Without `blocks` its tensors are random, by the options' seed.
    """
    options = options or Options()
    tensors = tensor_plans(shape, options)
    metadata = {**hyperparameters(shape, options), **options.vocabulary, **options.metadata}
    blocks = blocks or BlockSource(options.seed)
    if options.parts == 1:
        with path.open("wb", buffering=0) as out:
            _write_part(out, metadata, tensors, options, blocks)
        return [path]
    paths = []
    for number, run in enumerate(_divided(tensors, options.parts)):
        split: dict[str, object] = {
            "split.no": struct.pack("<IH", UINT16, number),
            "split.count": struct.pack("<IH", UINT16, options.parts),
            "split.tensors.count": struct.pack("<Ii", INT32, len(tensors)),
        }
        own = {**metadata, **split} if number == 0 else {"general.alignment": options.alignment, **split}
        paths.append(path.with_name(f"{path.stem}-{number + 1:05}-of-{options.parts:05}.gguf"))
        with paths[-1].open("wb", buffering=0) as out:
            _write_part(out, own, run, options, blocks)
    return paths


def _write_part(out: BinaryIO, metadata: Mapping[str, object], tensors: Sequence[TensorPlan], options: Options,
                blocks: Source) -> None:
    header = _header(metadata, tensors, options)
    end = len(header) + sum(_align(tensor.nbytes, options.alignment) for tensor in tensors)
    os.truncate(out.fileno(), end)
    _write_all(out, memoryview(header))
    for tensor in tensors:
        for piece in blocks.content(tensor.name, tensor.type, tensor.shape, options.rope_freqs):
            _write_all(out, piece)
        out.seek(-out.tell() % options.alignment, os.SEEK_CUR)


def _write_all(out: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[out.write(view) :]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m support.random_gguf", description=__doc__)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--shape", choices=["tiny", *PRESETS], default="1b")
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="1b and 8b: llama or qwen3")
    parser.add_argument("--type", choices=sorted(ggml.BY_NAME), default="F16")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", type=int, default=1, help="split into so many files")
    parser.add_argument("--rope-freqs", action="store_true", help="scale the rotary embedding like Llama 3.1")
    parser.add_argument("--tokenizer", type=Path, help="GGUF to copy the tokenizer from ($NVSTREAM_TEST_MODEL)")
    chosen = parser.parse_args(arguments)
    preset = TINY if chosen.shape == "tiny" else PRESETS[chosen.shape]
    if chosen.family not in preset:
        parser.error(f"--shape {chosen.shape} has the families {', '.join(preset)}")
    shape = preset[chosen.family]
    shape = replace(shape, layers=chosen.layers) if chosen.layers else shape
    synthetic = chosen.shape == "tiny" and chosen.tokenizer is None
    options = Options(
        type=ggml.BY_NAME[chosen.type],
        seed=chosen.seed,
        parts=chosen.parts,
        vocabulary=synthetic_vocabulary() if synthetic else real_vocabulary(chosen.tokenizer),
        rope_freqs=llama3_factors(shape) if chosen.rope_freqs else (),
    )
    write(chosen.out, shape, options)


if __name__ == "__main__":
    main()
