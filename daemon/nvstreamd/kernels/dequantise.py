"""What weight does each bit pattern stand for? The torch reference for every GGML block format.

Each function takes blocks [n, block_bytes] uint8 and returns [n, block_length] float32. Layouts are those of the
GGML block structures; all numbers in a block are little endian.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nvstreamd import ggml

# The 16 levels of the non-linear 4-bit formats, and the E2M1 levels of MXFP4 times two.
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_LEVELS_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block, [n, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[n, m] bytes -> [n, 2m] uint8: all low halves, then all high halves."""
    return torch.cat((packed & 15, packed >> 4), dim=1)


def fifth_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The 32 bits from byte `at` on as [n, 32] uint8 of 0 or 16."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    bits = blocks[:, at : at + 4, None] & weights
    return (bits != 0).view(-1, 32).to(torch.uint8) << 4


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, 32 nibbles offset by 8."""
    return nibbles(blocks[:, 2:]).to(torch.float32).sub_(8).mul_(half(blocks, 0))


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, minimum, 32 nibbles."""
    return nibbles(blocks[:, 4:]).to(torch.float32).mul_(half(blocks, 0)).add_(half(blocks, 2))


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, 32 fifth bits, 32 nibbles; offset by 16."""
    quants = nibbles(blocks[:, 6:]) | fifth_bits(blocks, 2)
    return quants.to(torch.float32).sub_(16).mul_(half(blocks, 0))


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, minimum, 32 fifth bits, 32 nibbles."""
    quants = nibbles(blocks[:, 8:]) | fifth_bits(blocks, 4)
    return quants.to(torch.float32).mul_(half(blocks, 0)).add_(half(blocks, 2))


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, 32 signed bytes."""
    return blocks[:, 2:].view(torch.int8).to(torch.float32).mul_(half(blocks, 0))


def two_bit_planes(packed: torch.Tensor) -> torch.Tensor:
    """64 bytes -> 256 two-bit numbers: per half of 32 bytes, plane by plane; [n, 2, 4, 32] uint8."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    return (packed.reshape(-1, 2, 1, 32) >> shifts) & 3


def scaled(quants: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Quants of 256 with one scale per 16: [n, ...] and [n, 16] -> [n, 16, 16] float32."""
    return quants.reshape(-1, 16, 16).to(torch.float32).mul_(scales[:, :, None])


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 bytes of 4-bit scales and minimums, 256 two-bit quants, super-scale, super-minimum."""
    scales, d, dmin = blocks[:, :16], half(blocks, 80), half(blocks, 82)
    values = scaled(two_bit_planes(blocks[:, 16:80]), d * (scales & 15))
    return values.sub_((dmin * (scales >> 4))[:, :, None]).view(-1, 256)


def six_bit_scales(packed: torch.Tensor) -> torch.Tensor:
    """Q3_K's 12 bytes -> 16 scales [n, 16] float32 from -32 to 31."""
    low = nibbles(packed[:, :8])
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 4, 1)
    high = ((packed[:, None, 8:12] >> shifts) & 3).reshape(-1, 16)
    return (low | (high << 4)).to(torch.float32).sub_(32)


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """256 third bits (set: no minus 4), 256 two-bit quants, 16 six-bit scales, super-scale."""
    shifts = torch.arange(8, dtype=torch.uint8).view(1, 2, 4, 1)
    third = (blocks[:, :32].reshape(-1, 1, 1, 32) >> shifts) & 1
    quants = (two_bit_planes(blocks[:, 32:96]) | (third << 2)).to(torch.float32).sub_(4)
    return scaled(quants, half(blocks, 108) * six_bit_scales(blocks[:, 96:108])).view(-1, 256)


def scales_and_minimums(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 12 bytes of Q4_K and Q5_K -> 8 scales and 8 minimums of 6 bits, [n, 8] uint8 each."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), dim=1)
    minimums = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), dim=1)
    return scales, minimums


def paired_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """128 bytes -> 256 nibbles: each run of 32 bytes gives its low halves, then its high halves; [n, 8, 32]."""
    runs = packed.reshape(-1, 4, 1, 32)
    return torch.cat((runs & 15, runs >> 4), dim=2).view(-1, 8, 32)


def with_minimums(quants: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Quants [n, 8, 32] of a block that begins with d, dmin and 12 bytes of scales -> [n, 256]."""
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    values = quants.to(torch.float32).mul_((half(blocks, 0) * scales)[:, :, None])
    return values.sub_((half(blocks, 2) * minimums)[:, :, None]).view(-1, 256)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Super-scale, super-minimum, 8 scales and minimums, 256 nibbles."""
    return with_minimums(paired_nibbles(blocks[:, 16:144]), blocks)


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """As Q4_K, with 256 fifth bits before the nibbles."""
    shifts = torch.arange(8, dtype=torch.uint8).view(1, 8, 1)
    fifth = (blocks[:, None, 16:48] >> shifts) & 1
    return with_minimums(paired_nibbles(blocks[:, 48:176]) | (fifth << 4), blocks)


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """256 nibbles, 256 upper bit pairs, 16 signed scales, super-scale; quants offset by 32."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    quants = (low | (two_bit_planes(blocks[:, 128:192]) << 4)).to(torch.float32).sub_(32)
    scales = blocks[:, 192:208].view(torch.int8).to(torch.float32)
    return scaled(quants, half(blocks, 208) * scales).view(-1, 256)


def iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    """Scale, 32 indices into the non-linear levels."""
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32)
    return levels[nibbles(blocks[:, 2:]).to(torch.int64)].mul_(half(blocks, 0))


def iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    """Super-scale, 8 six-bit scales (upper bits, then lower), 8 runs of 32 indices into the levels."""
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    upper = ((blocks[:, 2:4, None] >> shifts) & 3).reshape(-1, 8)
    lower = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).view(-1, 8)
    scales = (lower | (upper << 4)).to(torch.float32).sub_(32).mul_(half(blocks, 0))
    runs = blocks[:, 8:].reshape(-1, 16)
    return levels[nibbles(runs).to(torch.int64)].view(-1, 8, 32).mul_(scales[:, :, None]).view(-1, 256)


def mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """E8M0 exponent, 32 E2M1 numbers (OCP Microscaling Formats, section 5)."""
    levels = torch.tensor(E2M1_LEVELS_DOUBLED, dtype=torch.float32)
    exponents = blocks[:, :1].to(torch.int32) - 128
    scale = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    return levels[nibbles(blocks[:, 1:]).to(torch.int64)].mul_(scale)


def f32(blocks: torch.Tensor) -> torch.Tensor:
    """IEEE binary32."""
    return blocks.view(torch.float32)


def f16(blocks: torch.Tensor) -> torch.Tensor:
    """IEEE binary16."""
    return blocks.view(torch.float16).to(torch.float32)


def bf16(blocks: torch.Tensor) -> torch.Tensor:
    """The upper half of IEEE binary32."""
    return blocks.view(torch.bfloat16).to(torch.float32)


DEQUANTISE: dict[ggml.GgmlType, Callable[[torch.Tensor], torch.Tensor]] = {
    ggml.F32: f32,
    ggml.F16: f16,
    ggml.BF16: bf16,
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


def dequantise(kind: ggml.GgmlType, data: torch.Tensor, columns: int) -> torch.Tensor:
    """Packed rows, uint8 [bytes], -> [rows, columns] float32. The bytes are a whole number of rows."""
    return DEQUANTISE[kind](data.view(-1, kind.block_bytes)).reshape(-1, columns)
