"""Where are keys and values kept, and how does a batch of sequences attend over them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.kernels.torch_attention import PAGE_TOKENS, QUERY_TILE, attend_tile
from nvstreamd.kernels.workers import Workers

FLOAT16_MAX = 65504.0
BYTES_PER_ELEMENT = 2


def bytes_per_token(hyper: Hyper) -> int:
    """Bytes of KV cache that a token takes, float16 in all layers."""
    return hyper.kv_elements_per_token() * BYTES_PER_ELEMENT


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `first` to `first + count` of a batch: tokens `begin` on of a sequence whose pages are `pages`."""

    first: int
    count: int
    begin: int
    pages: torch.Tensor


class KvStore:
    """Keys and values of all layers, each [pages, kv_heads, PAGE_TOKENS, head_dim] float16."""

    def __init__(self, hyper: Hyper, pages: int) -> None:
        shape = (hyper.layers, pages, hyper.kv_heads, PAGE_TOKENS, hyper.head_dim)
        # Zeros, not garbage: a NaN that is masked away would still poison a weighted sum.
        self.keys = torch.zeros(shape, dtype=torch.float16)
        self.values = torch.zeros(shape, dtype=torch.float16)


class PagedAttention:
    """The attention of one pass over a batch laid out as `rows`; rows beyond them are padding."""

    def __init__(self, store: KvStore, rows: Sequence[Rows], workers: Workers) -> None:
        self.store = store
        self.workers = workers
        self.tiles = [
            Rows(r.first + done, min(QUERY_TILE, r.count - done), r.begin + done, r.pages)
            for r in rows
            for done in range(0, r.count, QUERY_TILE)
        ]
        tokens = torch.cat([torch.arange(r.begin, r.begin + r.count) for r in rows])
        self.used = len(tokens)
        self.slots = tokens % PAGE_TOKENS
        self.pages = torch.cat([r.pages[torch.arange(r.begin, r.begin + r.count) // PAGE_TOKENS] for r in rows])

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See architectures.ops.Attention; padding rows come back as zeros."""
        keys, values = self.store.keys[layer], self.store.values[layer]
        keys[self.pages, :, self.slots] = k[: self.used].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
        values[self.pages, :, self.slots] = v[: self.used].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
        out = torch.zeros(q.shape[0], q.shape[1] * q.shape[2])

        def tile(number: int) -> None:
            rows = self.tiles[number]
            pages = rows.pages[: -(-(rows.begin + rows.count) // PAGE_TOKENS)]
            own = torch.zeros(QUERY_TILE, *q.shape[1:])
            own[: rows.count] = q[rows.first : rows.first + rows.count]
            positions = torch.zeros(QUERY_TILE, dtype=torch.int64)
            positions[: rows.count] = torch.arange(rows.begin, rows.begin + rows.count)
            mixed = attend_tile(own, keys[pages], values[pages], positions)
            out[rows.first : rows.first + rows.count] = mixed[: rows.count]

        self.workers.run(tile, len(self.tiles))
        return out
