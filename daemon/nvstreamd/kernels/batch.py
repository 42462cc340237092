"""What does a pass look like to the kernels? Whose tokens its rows are, where their keys and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAGE_TOKENS = 32

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `first` to `first + count` of a batch: tokens `begin` on of a sequence whose pages are `pages`."""

    first: int
    count: int
    begin: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention, and how its heads are turned: pairs (0,1),(2,3).. or halves."""

    queries: int
    keys: int
    dim: int
    interleaved: bool
    epsilon: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a pass. cos, sin [rows, dim / 2] float32 are the angles of each row's position."""

    spans: Sequence[Span]
    cos: Floats
    sin: Floats


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys [layers, pages, kv_heads, dim, PAGE_TOKENS] and values [layers, pages, kv_heads, PAGE_TOKENS, dim], float16.

    Behind the last value lies room for a vector: kernels may read over the end of a row.
    """

    keys: Halves
    values: Halves
