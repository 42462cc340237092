"""How does the torch reference attend, so that a row's bits depend on its own past alone?

Keys come in pages of fixed size; every product has the shape (query tile) x (page). Page sums are added in a binary
tree padded with zeros, so that a longer table of pages, masked away, changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Floats, Heads, Span
from nvstreamd.kernels.workers import Workers

QUERY_TILE = 8
FLOAT16_MAX = 65504.0


def tree_sum(parts: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, in an order that trailing zeros do not change."""
    count = parts.shape[0]
    full = 1 << (count - 1).bit_length()
    if full != count:
        parts = torch.cat((parts, parts.new_zeros(full - count, *parts.shape[1:])))
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def attend_tile(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Causal attention of one tile of one sequence.

    q [QUERY_TILE, heads, dim] float32; keys [pages, kv_heads, dim, PAGE_TOKENS] and values [pages, kv_heads,
    PAGE_TOKENS, dim] float16, token t of the sequence at page t // PAGE_TOKENS; positions [QUERY_TILE] int64, each the
    last token that row may see. Returns [QUERY_TILE, heads * dim] float32.
    """
    pages, kv_heads, dim, _ = keys.shape
    group = q.shape[1] // kv_heads
    rows = q.view(QUERY_TILE, kv_heads, group, dim).transpose(0, 1).reshape(1, kv_heads, QUERY_TILE * group, dim)
    rows = (rows / math.sqrt(dim)).expand(pages, -1, -1, -1)
    scores = torch.matmul(rows, keys.to(torch.float32))
    tokens = torch.arange(pages * PAGE_TOKENS).view(pages, 1, 1, PAGE_TOKENS)
    unseen = tokens > positions.repeat_interleave(group).view(1, 1, -1, 1)
    scores.masked_fill_(unseen, -math.inf)
    weights = scores.sub_(scores.amax((0, 3), keepdim=True)).exp_()
    mixed = tree_sum(torch.matmul(weights, values.to(torch.float32)))
    total = tree_sum(weights.sum(-1))
    out = mixed / total[..., None]
    return out.view(kv_heads, QUERY_TILE, group, dim).transpose(0, 1).reshape(QUERY_TILE, -1)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [rows, heads, dim] turned by the angles of its row, pairwise (RoFormer, section 3.2)."""
    shape = (*x.shape[:-1], -1, 2) if interleaved else (*x.shape[:-1], 2, -1)
    axis = -1 if interleaved else -2
    a, b = x.reshape(shape).unbind(axis)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), axis).view(x.shape)


def norm_heads(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm of each head of x [rows, heads, dim]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True).add_(epsilon)) * weight


class TorchAttention:
    """The attention of one pass; rows beyond the batch's spans are padding and come back as zeros."""

    def __init__(self, workers: Workers, heads: Heads, cache: Cache, batch: Batch) -> None:
        self.workers = workers
        self.heads = heads
        self.keys, self.values = torch.from_numpy(cache.keys), torch.from_numpy(cache.values)
        self.cos, self.sin = torch.from_numpy(batch.cos), torch.from_numpy(batch.sin)
        self.tiles = [
            Span(span.first + done, min(QUERY_TILE, span.count - done), span.begin + done, span.pages)
            for span in batch.spans
            for done in range(0, span.count, QUERY_TILE)
        ]
        tokens = [(span.pages[t // PAGE_TOKENS], t % PAGE_TOKENS)
                  for span in batch.spans for t in range(span.begin, span.begin + span.count)]
        self.used = len(tokens)
        self.pages, self.slots = torch.tensor(tokens).unbind(1)

    def attend(self, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats]) -> Floats:
        """See architectures.ops.Attention."""
        shape, rows = self.heads, qkv[0].shape[0]
        q, k, v = (torch.from_numpy(part).view(rows, -1, shape.dim) for part in qkv)
        if norms:
            q, k = (norm_heads(x, torch.from_numpy(norm), shape.epsilon) for x, norm in zip((q, k), norms, strict=True))
        q, k = (rope(x, self.cos, self.sin, shape.interleaved) for x in (q, k))
        keys, values = self.keys[layer], self.values[layer]
        keys[self.pages, :, :, self.slots] = k[: self.used].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
        values[self.pages, :, self.slots] = v[: self.used].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
        out = torch.zeros(rows, shape.queries * shape.dim)
        self.workers.run(lambda number: self._tile(self.tiles[number], q, keys, values, out), len(self.tiles))
        return out.numpy()

    def _tile(self, span: Span, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
        pages = torch.tensor(span.pages[: -(-(span.begin + span.count) // PAGE_TOKENS)])
        rows = slice(span.first, span.first + span.count)
        own = torch.zeros(QUERY_TILE, *q.shape[1:])
        own[: span.count] = q[rows]
        positions = torch.zeros(QUERY_TILE, dtype=torch.int64)
        positions[: span.count] = torch.arange(span.begin, span.begin + span.count)
        out[rows] = attend_tile(own, keys[pages], values[pages], positions)[: span.count]
