"""Which operations does a family need from the kernels? The seam where kernels plug in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class LayerWeights(Protocol):
    """A segment in memory, valid while its slot is held."""

    def matrix(self, name: str) -> Any:
        """`name`.weight, with `name`.bias where there is one, as `Ops` understands it; its bytes stay in the slot."""

    def vector(self, name: str) -> Floats:
        """A one-dimensional tensor as float32."""


class Ops(Protocol):
    """A set of kernels. A row's result depends on that row alone, never on its neighbours.

    x is [rows, in] float32, rows a multiple of the kernels' row tile. `norm` [in] and `epsilon` are those of RMSNorm:
    x / sqrt(mean(x^2) + epsilon) * norm.
    """

    def project(self, x: Floats, norm: Floats, epsilon: float, weights: Sequence[Any]
                ) -> list[Floats]:
        """RMSNorm of x, times each of the weights -> [rows, out] float32 each."""

    def gated(self, x: Floats, norm: Floats, epsilon: float, gate: Any, up: Any) -> Floats:
        """h = RMSNorm of x; silu(h times gate) * (h times up) -> [rows, out] float32."""

    def add_linear(self, x: Floats, h: Floats, weight: Any) -> None:
        """x [rows, out] += h [rows, in] times weight."""


class Attention(Protocol):
    """The keys and values of every sequence in the batch, and the angles of its rows."""

    def attend(self, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats]) -> Floats:
        """Turns q and k, stores k and v, then attends causally -> [rows, heads * dim] float32.

        qkv are [rows, heads * dim], the latter two of key-value heads; they may be overwritten. `norms` is empty, or
        the RMSNorm weights [dim] of each head of q and of k.
        """
