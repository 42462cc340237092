"""What weight does each bit pattern stand for? The reference for every GGML block format.

Functions of quantised formats take blocks [n, block_bytes] uint8 and return them as `Quants`, those of floating-point
formats return [n, 1] float32. Layouts are those of the GGML block structures; all numbers in a block are little endian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nvstreamd import ggml
from nvstreamd.kernels.arrays import Floats

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.integer[Any]]
Numbers = Whole | npt.NDArray[np.floating[Any]]

# The 16 levels of the non-linear 4-bit formats, and the E2M1 levels of MXFP4 times two.
IQ4_LEVELS = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32)
E2M1_LEVELS_DOUBLED = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.float32)


@dataclass(frozen=True, slots=True)
class Quants:
    """Blocks cut into pieces that share a scale: weight = whole * scale, + low where there are minimums.

    whole [n, pieces, 16 or 32] float32 holds whole numbers. scale and low [n, pieces] are float32.
    """

    whole: Floats
    scale: Floats
    low: Floats | None = None

    def values(self) -> Floats:
        """The weights, [n, block length] float32: the product rounded, then the sum."""
        found = self.whole * self.scale[..., None]
        if self.low is not None:
            found += self.low[..., None]
        return found.reshape(found.shape[0], -1)


def pieces(whole: Numbers, scale: Floats, low: Floats | None = None, offset: int = 0) -> Quants:
    """Quants of numbers [n, ...] of which `offset` is taken; as many pieces as there are scales [n, pieces]."""
    numbers = whole.reshape(*scale.shape, -1).astype(np.float32)
    return Quants(numbers - np.float32(offset) if offset else numbers, scale, low)


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, [n, 1] float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """[n, m] bytes -> [n, 2m] uint8: all low halves, then all high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def fifth_bits(blocks: Bytes, at: int) -> Whole:
    """The 32 bits from byte `at` on as [n, 32] uint8 of 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def q4_0(blocks: Bytes) -> Quants:
    """Scale, 32 nibbles offset by 8."""
    return pieces(nibbles(blocks[:, 2:]), half(blocks, 0), offset=8)


def q4_1(blocks: Bytes) -> Quants:
    """Scale, minimum, 32 nibbles."""
    return pieces(nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2))


def q5_0(blocks: Bytes) -> Quants:
    """Scale, 32 fifth bits, 32 nibbles; offset by 16."""
    return pieces(nibbles(blocks[:, 6:]) | fifth_bits(blocks, 2), half(blocks, 0), offset=16)


def q5_1(blocks: Bytes) -> Quants:
    """Scale, minimum, 32 fifth bits, 32 nibbles."""
    return pieces(nibbles(blocks[:, 8:]) | fifth_bits(blocks, 4), half(blocks, 0), half(blocks, 2))


def q8_0(blocks: Bytes) -> Quants:
    """Scale, 32 signed bytes."""
    return pieces(blocks[:, 2:].view(np.int8), half(blocks, 0))


def two_bit_planes(packed: Bytes) -> Whole:
    """64 bytes -> 256 two-bit numbers: per half of 32 bytes, plane by plane; [n, 2, 4, 32] uint8."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    return (packed.reshape(-1, 2, 1, 32) >> shifts) & 3


def q2_k(blocks: Bytes) -> Quants:
    """16 bytes of 4-bit scales and minimums, 256 two-bit quants, super-scale, super-minimum."""
    scales = half(blocks, 80) * (blocks[:, :16] & 15)
    minimums = half(blocks, 82) * (blocks[:, :16] >> 4)
    return pieces(two_bit_planes(blocks[:, 16:80]), scales, -minimums)


def six_bit_scales(packed: Bytes) -> Floats:
    """Q3_K's 12 bytes -> 16 scales [n, 16] float32 from -32 to 31."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 4, 1)
    high = ((packed[:, None, 8:12] >> shifts) & 3).reshape(-1, 16)
    return (nibbles(packed[:, :8]) | (high << 4)).astype(np.float32) - 32


def q3_k(blocks: Bytes) -> Quants:
    """256 third bits (set: no minus 4), 256 two-bit quants, 16 six-bit scales, super-scale."""
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    third = (blocks[:, :32].reshape(-1, 1, 1, 32) >> shifts) & 1
    scales = half(blocks, 108) * six_bit_scales(blocks[:, 96:108])
    return pieces(two_bit_planes(blocks[:, 32:96]) | (third << 2), scales, offset=4)


def scales_and_minimums(packed: Bytes) -> tuple[Whole, Whole]:
    """The 12 bytes of Q4_K and Q5_K -> 8 scales and 8 minimums of 6 bits, [n, 8] uint8 each."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 6) << 4)), axis=1)
    minimums = np.concatenate((middle & 63, (high >> 4) | ((middle >> 6) << 4)), axis=1)
    return scales, minimums


def paired_nibbles(packed: Bytes) -> Whole:
    """128 bytes -> 256 nibbles: each run of 32 bytes gives its low halves, then its high halves; [n, 8, 32]."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate((runs & 15, runs >> 4), axis=2).reshape(-1, 8, 32)


def with_minimums(quants: Whole, blocks: Bytes) -> Quants:
    """Quants [n, 8, 32] of a block that begins with d, dmin and 12 bytes of scales."""
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    return pieces(quants, half(blocks, 0) * scales, -(half(blocks, 2) * minimums))


def q4_k(blocks: Bytes) -> Quants:
    """Super-scale, super-minimum, 8 scales and minimums, 256 nibbles."""
    return with_minimums(paired_nibbles(blocks[:, 16:144]), blocks)


def q5_k(blocks: Bytes) -> Quants:
    """As Q4_K, with 256 fifth bits before the nibbles."""
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (blocks[:, None, 16:48] >> shifts) & 1
    return with_minimums(paired_nibbles(blocks[:, 48:176]) | (fifth << 4), blocks)


def q6_k(blocks: Bytes) -> Quants:
    """256 nibbles, 256 upper bit pairs, 16 signed scales, super-scale; quants offset by 32."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return pieces(low | (two_bit_planes(blocks[:, 128:192]) << 4), scales, offset=32)


def iq4_nl(blocks: Bytes) -> Quants:
    """Scale, 32 indices into the non-linear levels."""
    return pieces(IQ4_LEVELS[nibbles(blocks[:, 2:])], half(blocks, 0))


def iq4_xs(blocks: Bytes) -> Quants:
    """Super-scale, 8 six-bit scales (upper bits, then lower), 8 runs of 32 indices into the levels."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)
    upper = ((blocks[:, 2:4, None] >> shifts) & 3).reshape(-1, 8)
    lower = np.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), axis=2).reshape(-1, 8)
    scales = ((lower | (upper << 4)).astype(np.float32) - 32) * half(blocks, 0)
    return pieces(IQ4_LEVELS[nibbles(blocks[:, 8:].reshape(-1, 16))], scales)


def mxfp4(blocks: Bytes) -> Quants:
    """E8M0 exponent, 32 E2M1 numbers (OCP Microscaling Formats, section 5)."""
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return pieces(E2M1_LEVELS_DOUBLED[nibbles(blocks[:, 1:])], scale)


def f32(blocks: Bytes) -> Floats:
    """IEEE binary32."""
    return blocks.view(np.float32)


def f16(blocks: Bytes) -> Floats:
    """IEEE binary16."""
    return blocks.view(np.float16).astype(np.float32)


def bf16(blocks: Bytes) -> Floats:
    """The upper half of IEEE binary32."""
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


FLOATS: dict[ggml.GgmlType, Callable[[Bytes], Floats]] = {ggml.F32: f32, ggml.F16: f16, ggml.BF16: bf16}
QUANTS: dict[ggml.GgmlType, Callable[[Bytes], Quants]] = {
    ggml.Q4_0: q4_0,
    ggml.Q4_1: q4_1,
    ggml.Q5_0: q5_0,
    ggml.Q5_1: q5_1,
    ggml.Q8_0: q8_0,
    ggml.Q2_K: q2_k,
    ggml.Q3_K: q3_k,
    ggml.Q4_K: q4_k,
    ggml.Q5_K: q5_k,
    ggml.Q6_K: q6_k,
    ggml.IQ4_NL: iq4_nl,
    ggml.IQ4_XS: iq4_xs,
    ggml.MXFP4: mxfp4,
}


def dequantise(kind: ggml.GgmlType, data: Bytes, columns: int) -> Floats:
    """Packed rows, uint8 [bytes], -> [rows, columns] float32. The bytes are a whole number of rows.

    F32 comes back as a view of `data`. Scales that are NaN or infinite give such weights, and no warning.
    """
    blocks = data.reshape(-1, kind.block_bytes)
    with np.errstate(all="ignore"):
        found = FLOATS[kind](blocks) if kind in FLOATS else QUANTS[kind](blocks).values()
        return found.reshape(-1, columns)
