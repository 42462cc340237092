"""How do the C++ kernels look from the engine? One call an operation, over the addresses of tensors.

Rows never see each other (cpu/integers.h, cpu/floats.h, cpu/attention.h say why), so a batch needs no padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from nvstreamd.kernels.batch import Batch, Cache, Heads
from nvstreamd.kernels.cpu_library import ADD, GATED, SPAN, STORE, CpuContext
from nvstreamd.kernels.weight import Weight

NO_MATRIX = (0, 0, 0, 0, 0, 0)


class CpuOps:
    """The C++ kernels; `name` is what status shows."""

    row_tile = 1

    def __init__(self, context: CpuContext) -> None:
        self.context = context
        self.name = f"C++ for {context.kernel.name}, {context.threads} threads"

    def _run(self, mode: int, x: torch.Tensor, norm: torch.Tensor | None, epsilon: float, weights: Sequence[Weight],
             outputs: Sequence[torch.Tensor]) -> None:
        """One struct Linear: all weights share the activations x [rows, in]."""
        fields = [x.data_ptr(), 0 if norm is None else norm.data_ptr(), *x.shape, epsilon, mode, len(weights)]
        for weight, y in zip(weights, outputs, strict=True):
            bias = 0 if weight.bias is None else weight.bias.data_ptr()
            fields += weight.data.data_ptr(), weight.rows, weight.type.id, y.data_ptr(), y.stride(0), bias
        for _ in range(3 - len(weights)):
            fields += NO_MATRIX
        self.context.linear(*fields)

    def linear(self, x: torch.Tensor, weight: Weight, y: torch.Tensor) -> None:
        """y [rows, out] float32 = x [rows, in] float32 times weight.T; y's rows may lie apart."""
        self._run(STORE, x, None, 0.0, (weight,), (y,))

    def project(self, x: torch.Tensor, norm: torch.Tensor, epsilon: float, weights: Sequence[Weight]
                ) -> list[torch.Tensor]:
        """See architectures.ops.Ops."""
        outputs = [torch.empty(x.shape[0], weight.rows) for weight in weights]
        self._run(STORE, x, norm, epsilon, weights, outputs)
        return outputs

    def gated(self, x: torch.Tensor, norm: torch.Tensor, epsilon: float, gate: Weight, up: Weight) -> torch.Tensor:
        """See architectures.ops.Ops."""
        h = torch.empty(x.shape[0], gate.rows)
        self._run(GATED, x, norm, epsilon, (gate, up), (h, h))
        return h

    def add_linear(self, x: torch.Tensor, h: torch.Tensor, weight: Weight) -> None:
        """See architectures.ops.Ops."""
        self._run(ADD, h, None, 0.0, (weight,), (x,))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """RMSNorm of x [rows, n]."""
        y = torch.empty(x.shape)
        rows, columns = x.shape
        self.context.norm(x.data_ptr(), weight.data_ptr(), rows, columns, epsilon, y.data_ptr())
        return y

    def finite(self, x: torch.Tensor) -> bool:
        """Whether no element is NaN or infinite."""
        return self.context.finite(x.data_ptr(), x.numel())

    def attention(self, heads: Heads, cache: Cache, batch: Batch) -> CpuAttention:
        """The attention of one pass."""
        return CpuAttention(self.context, heads, cache, batch)


class CpuAttention:
    """The attention of one pass: what all its layers share is worked out once."""

    def __init__(self, context: CpuContext, heads: Heads, cache: Cache, batch: Batch) -> None:
        self.context = context
        self.heads = heads
        self.cache = cache
        self.batch = batch
        self._spans = bytearray(SPAN.size * len(batch.spans))
        self._pages = array("q")
        for number, span in enumerate(batch.spans):
            SPAN.pack_into(self._spans, number * SPAN.size, span.first, span.count, span.begin, len(self._pages))
            self._pages.extend(span.pages)
        self._rows = sum(span.count for span in batch.spans)
        # frombuffer lends an address; the buffers live as long as this object.
        self._shared = (torch.frombuffer(self._spans, dtype=torch.int64).data_ptr(), self._pages.buffer_info()[0],
                        batch.cos.data_ptr(), batch.sin.data_ptr())
        self._shape = (len(batch.spans), heads.queries, heads.keys, heads.dim, heads.epsilon, int(heads.interleaved))
        self._layer_bytes = cache.keys.stride(0) * cache.keys.element_size()
        self._keys, self._values = cache.keys.data_ptr(), cache.values.data_ptr()

    def attend(self, layer: int, qkv: Sequence[torch.Tensor], norms: Sequence[torch.Tensor]) -> torch.Tensor:
        """See architectures.ops.Attention."""
        out = torch.empty(self._rows, self.heads.queries * self.heads.dim)
        q, k, v = qkv
        q_norm, k_norm = (norm.data_ptr() for norm in norms) if norms else (0, 0)
        self.context.attend(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(),
            self._keys + layer * self._layer_bytes, self._values + layer * self._layer_bytes,
            *self._shared, q_norm, k_norm, *self._shape)
        return out
