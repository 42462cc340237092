"""What are random weights of a given type, with a given spread, and as fast as a disk takes them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from math import prod, sqrt

import gguf
import numpy as np
from numpy.typing import NDArray

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType

Bytes = NDArray[np.uint8]

BUFFER_BYTES = 64 << 20
SAMPLE_BLOCKS = 512
NORM_SPREAD = 0.1
BIAS_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Fields:
    """Byte offsets of the float16 scale and minimum of a block; minimum = `centre` * scale makes the mean 0."""

    scale: int
    minimum: int | None = None
    centre: float = 0.0


FIELDS = {
    "Q4_0": Fields(0),
    "Q4_1": Fields(0, 2, -7.5),
    "Q5_0": Fields(0),
    "Q5_1": Fields(0, 2, -15.5),
    "Q8_0": Fields(0),
    "Q2_K": Fields(80, 82, 1.5),
    "Q3_K": Fields(108),
    "Q4_K": Fields(0, 2, 7.5),
    "Q5_K": Fields(0, 2, 15.5),
    "Q6_K": Fields(208),
    "IQ4_NL": Fields(0),
    "IQ4_XS": Fields(0),
}


def _set_half(blocks: Bytes, offset: int, values: NDArray[np.float64]) -> None:
    blocks[:, offset : offset + 2] = values.astype("<f2")[:, None].view(np.uint8)


def _set_scales(blocks: Bytes, kind: GgmlType, scales: NDArray[np.float64]) -> None:
    place = FIELDS[kind.name]
    _set_half(blocks, place.scale, scales)
    if place.minimum is not None:
        _set_half(blocks, place.minimum, place.centre * scales)


def _weights(blocks: Bytes, kind: GgmlType) -> NDArray[np.float32]:
    return np.asarray(gguf.quants.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType[kind.name]))


@cache
def _unit_spread(kind: GgmlType) -> float:
    """Standard deviation of weights whose quants are random and whose scale is 1 (MXFP4: exponent byte 127)."""
    blocks = np.random.default_rng(0).integers(0, 256, (SAMPLE_BLOCKS, kind.block_bytes), dtype=np.uint8)
    if kind == ggml.MXFP4:
        blocks[:, 0] = 127
    else:
        _set_scales(blocks, kind, np.ones(SAMPLE_BLOCKS))
    return float(_weights(blocks, kind).std())


def _floats(kind: GgmlType, values: NDArray[np.float32]) -> Bytes:
    if kind == ggml.F16:
        return values.astype("<f2").view(np.uint8)
    if kind == ggml.BF16:
        return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
    return values.astype("<f4").view(np.uint8)


def random_blocks(kind: GgmlType, count: int, spread: float, rng: np.random.Generator) -> Bytes:
    """Bytes of `count` blocks of weights with mean about 0 and standard deviation about `spread`."""
    if kind.block_length == 1:
        return _floats(kind, rng.standard_normal(count, dtype=np.float32) * np.float32(spread))
    blocks = np.frombuffer(bytearray(rng.bytes(count * kind.block_bytes)), np.uint8).reshape(count, -1)
    scale = spread / _unit_spread(kind)
    if kind == ggml.MXFP4:
        blocks[:, 0] = round(127 + np.log2(scale))
    else:
        _set_scales(blocks, kind, scale * rng.uniform(0.75, 1.25, count))
    return blocks.reshape(-1)


@dataclass(slots=True)
class BlockSource:
    """Content of tensors, the same for the same seed, shapes and order. Keeps one buffer a type, width and spread.

    The spread of a tensor is 1/sqrt(columns), or that times the factor that `factors` has for a pattern of its name.
    """

    seed: int
    factors: Mapping[str, float] = field(default_factory=dict)
    _buffers: dict[tuple[GgmlType, int, float], Bytes] = field(default_factory=dict)

    def content(self, name: str, kind: GgmlType, shape: tuple[int, ...], rope_freqs: Sequence[float]
                ) -> Iterator[memoryview]:
        """The bytes of one tensor, in pieces. Depends on seed and name alone, not on what was written before."""
        rng = np.random.default_rng([self.seed, *name.encode()])
        if len(shape) == 1:
            yield _floats(kind, _vector(name, shape[0], rope_freqs, rng)).data
            return
        total = prod(shape[:-1]) * kind.row_bytes(shape[-1])
        factor = next((each for pattern, each in self.factors.items() if fnmatchcase(name, pattern)), 1.0)
        if total <= BUFFER_BYTES // 16:
            yield random_blocks(kind, total // kind.block_bytes, factor / sqrt(shape[-1]), rng).data
            return
        buffer = self._buffer(kind, shape[-1], factor).data
        begin = int(rng.integers(len(buffer) // kind.block_bytes)) * kind.block_bytes
        while total:
            piece = buffer[begin : begin + total]
            yield piece
            total, begin = total - len(piece), 0

    def _buffer(self, kind: GgmlType, columns: int, factor: float) -> Bytes:
        if (kind, columns, factor) not in self._buffers:
            rng = np.random.default_rng([self.seed, kind.id, columns])
            count = BUFFER_BYTES // kind.block_bytes
            self._buffers[kind, columns, factor] = random_blocks(kind, count, factor / sqrt(columns), rng)
        return self._buffers[kind, columns, factor]


def _vector(name: str, length: int, rope_freqs: Sequence[float], rng: np.random.Generator) -> NDArray[np.float32]:
    noise = rng.standard_normal(length, dtype=np.float32)
    if name == "rope_freqs.weight":
        return np.asarray(rope_freqs, np.float32)
    return BIAS_SPREAD * noise if name.endswith(".bias") else 1 + NORM_SPREAD * noise
