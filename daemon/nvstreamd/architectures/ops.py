"""Which operations does a family need from the kernels? The seam where kernels plug in."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class LayerWeights(Protocol):
    """A segment in memory, valid while its slot is held: what `linear` takes and what is small enough to copy."""

    def matrix(self, name: str) -> Any:
        """A handle that `Ops.linear` understands; its bytes stay in the slot."""

    def vector(self, name: str) -> torch.Tensor:
        """A one-dimensional tensor as float32."""

    def has(self, name: str) -> bool:
        """Whether the layer brings that tensor."""


class Ops(Protocol):
    """A set of kernels. A row's result depends on that row alone, never on its neighbours."""

    def linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """x [rows, in] float32, rows a multiple of the row tile -> [rows, out] float32."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """x [..., n] / rms(x) * weight [n]."""

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
        """x [rows, heads, dim] turned by the angles of its row, cos and sin [rows, rope_dim / 2]."""

    def swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, elementwise."""


class Attention(Protocol):
    """The keys and values of every sequence in the batch."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k, v [rows, kv_heads, dim], then attends q [rows, heads, dim] causally -> [rows, heads * dim]."""
