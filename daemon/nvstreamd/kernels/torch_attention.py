"""How does torch attend, to the bit of kernels/ARITHMETIC.md, section 5? Chunks beside each other, pages in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.kernels.torch_arithmetic import exponential, fma, fold

CHUNK_TOKENS = 256
FLOAT16_MAX = 65504.0


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x [rows, heads, dim] turned by the angles [rows, dim / 2] of its row, pair by pair."""
    shape = (*x.shape[:-1], -1, 2) if interleaved else (*x.shape[:-1], 2, -1)
    axis = -1 if interleaved else -2
    a, b = x.reshape(shape).unbind(axis)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), axis).view(x.shape)


def to_half(x: Tensor) -> Tensor:
    """Rounded to binary16, having been limited to what it holds."""
    return x.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)


@dataclass(slots=True)
class _Found:
    """The findings of rows: the largest score and the sum of weights [..., rows, heads], values mixed [..., dim]."""

    most: Tensor
    total: Tensor
    mixed: Tensor


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention of rows of one sequence, q [rows, heads, dim] -> the same shape.

    keys and values [tokens, kv heads, dim] float16, from the first token on; each row sees those before `seen` [rows],
    the last `window` of them alone where that is given. Queries are multiplied by `scale`.
    """
    rows, heads, dim = q.shape
    longest = min(CHUNK_TOKENS, -(-keys.shape[0] // PAGE_TOKENS) * PAGE_TOKENS)
    q = q * torch.tensor(scale)
    missing = -keys.shape[0] % CHUNK_TOKENS
    keys, values = (torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, missing)).repeat_interleave(
        heads // keys.shape[1], 1) for x in (keys, values))
    scores = torch.zeros(keys.shape[0], rows, heads)
    for i in range(dim):
        scores = fma(q[..., i], keys[:, None, :, i], scores)
    tokens = torch.arange(keys.shape[0])[:, None]
    hidden = (tokens >= seen) | (tokens < seen - (window or keys.shape[0]))
    scores.masked_fill_(hidden[..., None], -math.inf)
    chunks = _chunks(longest, *(x.reshape(-1, CHUNK_TOKENS, *x.shape[1:]) for x in (scores, values)))
    return _join(chunks)


def _chunks(longest: int, scores: Tensor, values: Tensor) -> _Found:
    """Each chunk for itself, up to its token `longest`.

    scores [chunks, 256, rows, heads], values [chunks, 256, heads, dim].
    """
    chunks, _, rows, heads = scores.shape
    found = _Found(torch.full((chunks, rows, heads), -math.inf), torch.zeros(chunks, rows, heads),
                   torch.zeros(chunks, rows, heads, values.shape[-1]))
    for page in range(0, longest, PAGE_TOKENS):
        own, its = scores[:, page : page + PAGE_TOKENS], values[:, page : page + PAGE_TOKENS]
        seen = own > -math.inf
        some = seen.any(1)
        new = torch.maximum(found.most, own.amax(1))
        weights = exponential(own - new[:, None]).where(seen, 0)
        shrink = exponential(found.most - new)
        total = found.total * shrink + fold(weights.movedim(1, -1))
        mixed = found.mixed.where((found.most == new)[..., None], found.mixed * shrink[..., None])
        for token in range(PAGE_TOKENS):
            more = fma(weights[:, token, :, :, None], its[:, token, None], mixed)
            mixed = more.where(seen[:, token, :, :, None], mixed)
        # A page of which nothing is seen leaves everything as it was.
        found = _Found(new, total.where(some, found.total), mixed.where(some[..., None], found.mixed))
    return found


def _join(chunks: _Found) -> Tensor:
    """The chunks that each row sees, joined in order; the quotient."""
    most, total, mixed = chunks.most[0], chunks.total[0], chunks.mixed[0]
    for own, its_total, its_mixed in zip(chunks.most[1:], chunks.total[1:], chunks.mixed[1:], strict=True):
        some, first = own > -math.inf, most == -math.inf
        new = torch.maximum(most, own)
        kept, taken = exponential(most - new), exponential(own - new)
        total = its_total.where(first, fma(its_total, taken, total * kept)).where(some, total)
        joined = its_mixed.where(first[..., None], fma(its_mixed, taken[..., None], mixed * kept[..., None]))
        mixed = joined.where(some[..., None], mixed)
        most = new
    return mixed / total[..., None]
