"""How does the torch reference multiply, so that a row's bits never depend on the rows beside it?

BLAS picks its summation order by the shape of a product. So every product here has one of a fixed set of shapes:
ROW_TILE rows of activations by a chunk of weight rows whose size follows from the matrix alone. The last tile is
filled up with zeros by the caller. Weights are dequantised chunk by chunk into a scratch that stays in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nvstreamd.kernels.batch import Batch, Cache, Floats, Heads
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.torch_attention import TorchAttention
from nvstreamd.kernels.weight import Weight
from nvstreamd.kernels.workers import Workers

ROW_TILE = 8
CHUNK_WEIGHTS = 1 << 18


def chunk_rows(weight: Weight) -> int:
    """Weight rows that are dequantised and multiplied at a time; a multiple of 32."""
    return max(32, CHUNK_WEIGHTS // weight.columns // 32 * 32)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x [..., n] / sqrt(mean(x^2) + epsilon) * weight [n]."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(epsilon))
    return x.mul(scale).mul_(weight)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, elementwise; gate is overwritten."""
    return torch.nn.functional.silu(gate, inplace=True).mul_(up)


class TorchOps:
    """The reference kernels: any type, any CPU. Arrays are looked at as tensors where they lie."""

    name = "torch"
    row_tile = ROW_TILE

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def linear(self, x: Floats, weight: Weight, y: Floats) -> None:
        """y [rows, out] float32 = x [rows, in] float32 times weight.T; rows is a multiple of ROW_TILE."""
        self._linear(torch.from_numpy(x), weight, torch.from_numpy(y))

    def _linear(self, x: torch.Tensor, weight: Weight, y: torch.Tensor) -> None:
        tiles, outputs = torch.split(x, ROW_TILE), torch.split(y, ROW_TILE)
        step = chunk_rows(weight)
        bias = None if weight.bias is None else torch.from_numpy(weight.bias)

        def chunk(number: int) -> None:
            begin, end = number * step, min((number + 1) * step, weight.rows)
            rows = torch.from_numpy(dequantise(weight.type, weight.slice(begin, end), weight.columns))
            for tile, output in zip(tiles, outputs, strict=True):
                torch.mm(tile, rows.T, out=output[:, begin:end])
                if bias is not None:
                    output[:, begin:end] += bias[begin:end]

        self.workers.run(chunk, -(-weight.rows // step))

    def _product(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        y = torch.empty(x.shape[0], weight.rows)
        self._linear(x, weight, y)
        return y

    def project(self, x: Floats, norm: Floats, epsilon: float, weights: Sequence[Weight]) -> list[Floats]:
        """See architectures.ops.Ops."""
        h = rms_norm(torch.from_numpy(x), torch.from_numpy(norm), epsilon)
        return [self._product(h, weight).numpy() for weight in weights]

    def gated(self, x: Floats, norm: Floats, epsilon: float, gate: Weight, up: Weight) -> Floats:
        """See architectures.ops.Ops."""
        gates, ups = (torch.from_numpy(product) for product in self.project(x, norm, epsilon, (gate, up)))
        return swiglu(gates, ups).numpy()

    def add_linear(self, x: Floats, h: Floats, weight: Weight) -> None:
        """See architectures.ops.Ops."""
        x += self._product(torch.from_numpy(h), weight).numpy()

    def rms_norm(self, x: Floats, weight: Floats, epsilon: float) -> Floats:
        """RMSNorm of x [rows, n]."""
        return rms_norm(torch.from_numpy(x), torch.from_numpy(weight), epsilon).numpy()

    def finite(self, x: Floats) -> bool:
        """Whether no element is NaN or infinite."""
        return bool(torch.isfinite(torch.from_numpy(x)).all())

    def attention(self, heads: Heads, cache: Cache, batch: Batch) -> TorchAttention:
        """The attention of one pass."""
        return TorchAttention(self.workers, heads, cache, batch)
