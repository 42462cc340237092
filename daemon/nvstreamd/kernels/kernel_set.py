"""What must a set of kernels offer the engine? Arrays come and go as numpy's, whoever multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nvstreamd.kernels.batch import Batch, Cache, Floats, Heads
from nvstreamd.kernels.weight import Weight


class PassAttention(Protocol):
    """The attention of one pass; see architectures.ops.Attention."""

    def attend(self, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats]) -> Floats:
        """[rows, heads * dim] float32."""


class KernelSet(Protocol):
    """What a family asks for (architectures.ops.Ops), and what a pass needs before and after its layers.

    `name` is what status shows. A batch's rows are filled up to a multiple of `row_tile`.
    """

    name: str
    row_tile: int

    def linear(self, x: Floats, weight: Weight, y: Floats) -> None:
        """y [rows, out] = x [rows, in] times weight.T; y's rows may lie apart."""

    def project(self, x: Floats, norm: Floats, epsilon: float, weights: Sequence[Weight]) -> list[Floats]:
        """RMSNorm of x, times each of the weights."""

    def gated(self, x: Floats, norm: Floats, epsilon: float, gate: Weight, up: Weight) -> Floats:
        """h = RMSNorm of x; silu(h times gate) * (h times up)."""

    def add_linear(self, x: Floats, h: Floats, weight: Weight) -> None:
        """x += h times weight."""

    def rms_norm(self, x: Floats, weight: Floats, epsilon: float) -> Floats:
        """RMSNorm of x [rows, n]."""

    def finite(self, x: Floats) -> bool:
        """Whether no element of x [rows, n] is NaN or infinite; its rows may lie apart."""

    def attention(self, heads: Heads, cache: Cache, batch: Batch) -> PassAttention:
        """The attention of one pass."""
