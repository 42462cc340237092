"""How does torch compute what kernels/ARITHMETIC.md says, to the bit? The oracle: written from that page alone.

Sums whose order the page fixes are loops over whole tensors; only the exact integer sums of blocks go to BLAS, since
binary32 holds all of them exactly, in any order.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.dequantise import FLOATS, QUANTS, Quants, dequantise
from nvstreamd.program import Activation

BLOCK = 32
NORM_STRANDS, PRODUCT_STRANDS = 32, 16
# Elements of intermediate results at a time: they stay in the caches.
MOST_ELEMENTS = 1 << 18
ROUNDING = 12582912.0
LEAST_CHOSEN = 2.0**-14
# 2 * sqrt(2 / pi), and that times 0.044715.
GELU, GELU_CUBED = 1.5957691216057308, 0.07135481627260025


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of binary32, rounded once (section 1): the sum is rounded to odd in binary64, then to binary32."""
    product, addend = torch.mul(a.double(), b.double()), c.double()
    total = product + addend
    part = total - product
    error = (product - (total - part)).add_(addend - part)
    bits = total.view(torch.int64)
    inexact = ((error > 0) | (error < 0)) & ((bits & 1) == 0)
    away = (error > 0) == (total > 0)
    bits += inexact * (2 * away.long() - 1)
    return total.float()


def fold(strands: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two long: the upper half is added to the lower (section 2)."""
    while strands.shape[-1] > 1:
        half = strands.shape[-1] // 2
        strands = strands[..., :half] + strands[..., half:]
    return strands[..., 0]


def strands_of(x: Tensor, count: int) -> Tensor:
    """x [..., n] -> [n / count, ..., count], filled up with zeros: what each turn adds to the strands."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % count))
    return padded.view(*x.shape[:-1], -1, count).movedim(-2, 0)


def exponential(x: Tensor) -> Tensor:
    """e^x (section 1)."""
    x = x.clamp(-87.0, 87.0)
    rounding = torch.tensor(ROUNDING)
    whole = fma(x, torch.tensor(1.44269504088896341), rounding) - rounding
    r = fma(whole, torch.tensor(-0.693359375), x)
    r = fma(whole, torch.tensor(2.12194440e-4), r)
    y = torch.full_like(x, 1 / 5040)
    for order in (6, 5, 4, 3, 2, 1, 0):
        y = fma(y, r, torch.tensor(1 / math.factorial(order)))
    return y * (whole.to(torch.int32) + 127 << 23).view(torch.float32)


def root(x: Tensor) -> Tensor:
    """The square root, correctly rounded: numpy's is, torch's own goes by a library whose is not."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of x [..., n] by weight [n] (section 4)."""
    total = torch.zeros(*x.shape[:-1], NORM_STRANDS)
    for lanes in strands_of(x, NORM_STRANDS):
        total = fma(lanes, lanes, total)
    mean = fold(total) / torch.tensor(float(x.shape[-1])) + torch.tensor(epsilon)
    return x * (1 / root(mean))[..., None] * weight


def gate(g: Tensor, u: Tensor, activation: Activation = Activation.SILU) -> Tensor:
    """activation(g) * u (section 4)."""
    t = g if activation is Activation.SILU else g * (g * g * torch.tensor(GELU_CUBED) + torch.tensor(GELU))
    return g / (1 + exponential(0 - t)) * u


def route(scores: Tensor, used: int) -> tuple[Tensor, Tensor]:
    """The experts [rows, used] int32 that scores [rows, experts] choose, and their weights (section 9)."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :used]
    parts = exponential(scores - scores.gather(-1, order[:, :1]))
    total = torch.zeros(scores.shape[0], NORM_STRANDS)
    for lanes in strands_of(parts, NORM_STRANDS):
        total = total + lanes
    weights = parts.gather(-1, order) / fold(total)[:, None]
    chosen = torch.zeros(scores.shape[0])
    for rank in range(used):
        chosen = chosen + weights[:, rank]
    return order.to(torch.int32), weights / chosen.clamp_min(LEAST_CHOSEN)[:, None]


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks of activations x [rows, n] (section 3): d [rows, n / 32], and whole numbers [rows, n / 32, 32]."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    most = blocks.abs().amax(-1)
    d = (most / 127).view(torch.int32).bitwise_and(~3).view(torch.float32)
    # Not 127 / most: torch makes that a reciprocal times 127.
    whole = torch.round(blocks * torch.div(torch.tensor(127.0), most)[..., None])
    tiny = most < 1e-30
    return d.masked_fill(tiny, 0), whole.masked_fill(tiny[..., None], 0)


def product(x: Tensor, kind: GgmlType, data: npt.NDArray[np.uint8], columns: int) -> Tensor:
    """x [rows, columns] times the rows of weights in `data` [out * row bytes] -> [rows, out] (sections 3 and 4)."""
    row_bytes = kind.row_bytes(columns)
    elements = x.shape[0] * (PRODUCT_STRANDS if kind in FLOATS else columns // BLOCK)
    step = max(1, MOST_ELEMENTS // elements) * row_bytes
    activations = None if kind in FLOATS else quantise(x)
    found = []
    for begin in range(0, data.size, step):
        piece = data[begin : begin + step]
        if activations is None:
            found.append(_float_product(x, torch.from_numpy(dequantise(kind, piece, columns).copy())))
        else:
            with np.errstate(all="ignore"):
                quants = QUANTS[kind](piece.reshape(-1, kind.block_bytes))
            found.append(_quantised_product(*activations, quants, piece.size // row_bytes))
    return torch.cat(found, dim=1)


def _float_product(x: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(x.shape[0], weights.shape[0], PRODUCT_STRANDS)
    for w, lanes in zip(strands_of(weights, PRODUCT_STRANDS), strands_of(x, PRODUCT_STRANDS), strict=True):
        total = fma(w[None], lanes[:, None], total)
    return fold(total)


def _quantised_product(d: Tensor, q: Tensor, quants: Quants, out: int) -> Tensor:
    """d [rows, blocks], q [rows, blocks, 32] times `out` rows of weights; blocks in order, their halves within."""
    size = quants.whole.shape[-1]
    halves = BLOCK // size
    whole = torch.from_numpy(quants.whole).reshape(out, -1, size)
    scale = torch.from_numpy(quants.scale).reshape(out, -1)
    low = None if quants.low is None else torch.from_numpy(quants.low).reshape(out, -1)
    own = q.reshape(q.shape[0], -1, size)
    sums = torch.bmm(own.movedim(1, 0), whole.movedim(1, 0).mT)
    scaled = d.repeat_interleave(halves, 1) * own.sum(-1)
    total = torch.zeros(q.shape[0], out)
    for block in range(q.shape[1]):
        pieces = range(block * halves, (block + 1) * halves)
        for piece in pieces:
            total = fma(scale[:, piece], d[:, block, None] * sums[piece], total)
        if low is None:
            continue
        for piece in pieces:
            total = fma(low[:, piece], scaled[:, piece, None], total)
    return total
