"""How does the torch reference attend, so that a row's bits depend on its own past alone?

Keys come in pages of fixed size; every product has the shape (query tile) x (page). Page sums are added in a binary
tree padded with zeros, so that a longer table of pages, masked away, changes no bit.
"""

from __future__ import annotations

import math

import torch

PAGE_TOKENS = 32
QUERY_TILE = 8


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

    q [QUERY_TILE, heads, dim] float32; keys, values [pages, kv_heads, PAGE_TOKENS, dim] float16, token t of the
    sequence at page t // PAGE_TOKENS; positions [QUERY_TILE] int64, each the last token that row may see.
    Returns [QUERY_TILE, heads * dim] float32.
    """
    pages, kv_heads, _, dim = keys.shape
    group = q.shape[1] // kv_heads
    rows = q.view(QUERY_TILE, kv_heads, group, dim).transpose(0, 1).reshape(1, kv_heads, QUERY_TILE * group, dim)
    rows = (rows / math.sqrt(dim)).expand(pages, -1, -1, -1)
    scores = torch.matmul(rows, keys.to(torch.float32).transpose(2, 3))
    tokens = torch.arange(pages * PAGE_TOKENS).view(pages, 1, 1, PAGE_TOKENS)
    unseen = tokens > positions.repeat_interleave(group).view(1, 1, -1, 1)
    scores.masked_fill_(unseen, -math.inf)
    weights = scores.sub_(scores.amax((0, 3), keepdim=True)).exp_()
    mixed = tree_sum(torch.matmul(weights, values.to(torch.float32)))
    total = tree_sum(weights.sum(-1))
    out = mixed / total[..., None]
    return out.view(kv_heads, QUERY_TILE, group, dim).transpose(0, 1).reshape(QUERY_TILE, -1)
