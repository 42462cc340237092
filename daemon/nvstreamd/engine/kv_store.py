"""Where are keys and values kept? In pages, all layers in one piece of memory."""

from __future__ import annotations

import mmap

import numpy as np

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.kernels.batch import PAGE_TOKENS, Cache, Halves, Heads

BYTES_PER_ELEMENT = 2
SLACK = 64


def bytes_per_token(hyper: Hyper) -> int:
    """Bytes of KV cache that a token takes, float16 in all layers."""
    return hyper.kv_elements_per_token() * BYTES_PER_ELEMENT


def heads_of(hyper: Hyper) -> Heads:
    """The attention of a model as kernels want it."""
    return Heads(hyper.heads, hyper.kv_heads, hyper.head_dim, hyper.family.interleaved_rope, hyper.epsilon)


def untouched_zeros(elements: int) -> Halves:
    """float16 zeros that take memory only where something was written: the kernel's own zero pages."""
    memory = mmap.mmap(-1, elements * BYTES_PER_ELEMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float16)


def make_cache(hyper: Hyper, pages: int) -> Cache:
    """Empty keys and values. Zeros, not garbage: a NaN that is masked away would still poison a weighted sum."""
    shape = (hyper.layers, pages, hyper.kv_heads)
    elements = hyper.layers * pages * hyper.kv_heads * PAGE_TOKENS * hyper.head_dim
    keys, values = untouched_zeros(elements), untouched_zeros(elements + SLACK)[:elements]
    return Cache(keys.reshape(*shape, hyper.head_dim, PAGE_TOKENS), values.reshape(*shape, PAGE_TOKENS, hyper.head_dim))
