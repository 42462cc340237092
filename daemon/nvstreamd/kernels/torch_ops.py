"""How does the torch reference multiply, so that a row's bits never depend on the rows beside it?

BLAS picks its summation order by the shape of a product. So every product here has one of a fixed set of shapes:
ROW_TILE rows of activations by a chunk of weight rows whose size follows from the matrix alone. The last tile is
filled up with zeros by the caller. Weights are dequantised chunk by chunk into a scratch that stays in the L2 cache.
"""

from __future__ import annotations

import torch

from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.weight import Weight
from nvstreamd.kernels.workers import Workers

ROW_TILE = 8
CHUNK_WEIGHTS = 1 << 18


def chunk_rows(weight: Weight) -> int:
    """Weight rows that are dequantised and multiplied at a time; a multiple of 32."""
    return max(32, CHUNK_WEIGHTS // weight.columns // 32 * 32)


class TorchOps:
    """The reference kernels: any type, any CPU. `name` is what status shows."""

    name = "torch"
    row_tile = ROW_TILE

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def linear(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """x [rows, in] float32 times weight.T -> [rows, out] float32; rows is a multiple of ROW_TILE."""
        tiles = torch.split(x, ROW_TILE)
        y = torch.empty(x.shape[0], weight.rows)
        outputs = torch.split(y, ROW_TILE)
        step = chunk_rows(weight)

        def chunk(number: int) -> None:
            begin, end = number * step, min((number + 1) * step, weight.rows)
            transposed = dequantise(weight.type, weight.slice(begin, end), weight.columns).T
            for tile, output in zip(tiles, outputs, strict=True):
                torch.mm(tile, transposed, out=output[:, begin:end])

        self.workers.run(chunk, -(-weight.rows // step))
        return y

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """x [..., n] / sqrt(mean(x^2) + epsilon) * weight [n]."""
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(epsilon))
        return x.mul(scale).mul_(weight)

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
        """x [rows, heads, dim] with its first 2 * cos.shape[1] elements turned, pairwise (RoFormer, section 3.2)."""
        turned = 2 * cos.shape[1]
        head, tail = x[..., :turned], x[..., turned:]
        shape = (*head.shape[:-1], -1, 2) if interleaved else (*head.shape[:-1], 2, -1)
        axis = -1 if interleaved else -2
        a, b = head.reshape(shape).unbind(axis)
        cos, sin = cos[:, None], sin[:, None]
        both = torch.stack((a * cos - b * sin, a * sin + b * cos), axis).view(head.shape)
        return torch.cat((both, tail), -1) if tail.shape[-1] else both

    def swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, elementwise; gate is overwritten."""
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)
