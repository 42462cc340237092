"""How do the C++ kernels look from the engine? One call an operation, over the addresses of tensors.

Rows never see each other (cpu/integers.h, cpu/floats.h, cpu/attention.h say why), so a batch needs no padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from nvstreamd.errors import KernelError
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Heads
from nvstreamd.kernels.cpu_library import ADD, GATED, NO_LINEAR, PASS, SPAN, STEP, STORE, CpuContext
from nvstreamd.kernels.weight import Weight

MOST_MATRICES = 3
NO_MATRIX = (0, 0, 0, 0, 0, 0)


def linear_fields(mode: int, x: torch.Tensor, norm: torch.Tensor | None, epsilon: float, weights: Sequence[Weight],
                  outputs: Sequence[torch.Tensor]) -> list[float]:
    """The fields of a struct Linear: all weights share the activations x [rows, in]."""
    fields = [x.data_ptr(), 0 if norm is None else norm.data_ptr(), *x.shape, epsilon, mode, len(weights)]
    for weight, y in zip(weights, outputs, strict=True):
        bias = 0 if weight.bias is None else weight.bias.data_ptr()
        fields += weight.data.data_ptr(), weight.rows, weight.type.id, y.data_ptr(), y.stride(0), bias
    for _ in range(MOST_MATRICES - len(weights)):
        fields += NO_MATRIX
    return fields


def attend_fields(heads: Heads, cache: Cache, layer: int, qkv: Sequence[torch.Tensor], norms: Sequence[torch.Tensor],
                  out: torch.Tensor) -> list[float]:
    """The fields of a struct Attend, but for those of the pass."""
    tensors = (*qkv, out, cache.keys[layer], cache.values[layer])
    norm_addresses = [norm.data_ptr() for norm in norms] or [0, 0]
    return [*(tensor.data_ptr() for tensor in tensors), 0, 0, 0, 0, *norm_addresses, 0, heads.queries, heads.keys,
            heads.dim, heads.epsilon, int(heads.interleaved)]


class CpuOps:
    """The C++ kernels; `name` is what status shows."""

    row_tile = 1

    def __init__(self, context: CpuContext) -> None:
        self.context = context
        self.name = f"C++ for {context.kernel.name}, {context.threads} threads"

    def linear(self, x: torch.Tensor, weight: Weight, y: torch.Tensor) -> None:
        """y [rows, out] float32 = x [rows, in] float32 times weight.T; y's rows may lie apart."""
        self.context.linear(*linear_fields(STORE, x, None, 0.0, (weight,), (y,)))

    def project(self, x: torch.Tensor, norm: torch.Tensor, epsilon: float, weights: Sequence[Weight]
                ) -> list[torch.Tensor]:
        """See architectures.ops.Ops."""
        outputs = [torch.empty(x.shape[0], weight.rows) for weight in weights]
        self.context.linear(*linear_fields(STORE, x, norm, epsilon, weights, outputs))
        return outputs

    def gated(self, x: torch.Tensor, norm: torch.Tensor, epsilon: float, gate: Weight, up: Weight) -> torch.Tensor:
        """See architectures.ops.Ops."""
        h = torch.empty(x.shape[0], gate.rows)
        self.context.linear(*linear_fields(GATED, x, norm, epsilon, (gate, up), (h, h)))
        return h

    def add_linear(self, x: torch.Tensor, h: torch.Tensor, weight: Weight) -> None:
        """See architectures.ops.Ops."""
        self.context.linear(*linear_fields(ADD, h, None, 0.0, (weight,), (x,)))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """RMSNorm of x [rows, n]."""
        y = torch.empty(x.shape)
        rows, columns = x.shape
        self.context.norm(x.data_ptr(), weight.data_ptr(), rows, columns, epsilon, y.data_ptr())
        return y

    def finite(self, x: torch.Tensor) -> bool:
        """Whether no element is NaN or infinite; x is contiguous, or rows of a wider tensor."""
        if x.is_contiguous():
            return self.context.finite(x.data_ptr(), x.numel())
        return all(self.context.finite(row.data_ptr(), row.numel()) for row in x)

    def attention(self, heads: Heads, cache: Cache, batch: Batch) -> CpuAttention:
        """The attention of one pass."""
        return CpuAttention(self.context, heads, cache, batch)


class CpuAttention:
    """The attention of one pass: what all its layers share is worked out once, as the struct Pass in `over`."""

    def __init__(self, context: CpuContext, heads: Heads, cache: Cache, batch: Batch) -> None:
        self.context = context
        self.heads = heads
        self.cache = cache
        self.batch = batch
        self.rows = sum(span.count for span in batch.spans)
        spans = bytearray(SPAN.size * len(batch.spans))
        pages = array("q")
        for number, span in enumerate(batch.spans):
            SPAN.pack_into(spans, number * SPAN.size, span.first, span.count, span.begin, len(pages))
            pages.extend(span.pages)
            if len(span.pages) * PAGE_TOKENS < span.begin + span.count:
                raise KernelError(f"{span.begin + span.count} tokens in {len(span.pages)} pages", "report this")
        if max(pages) >= cache.keys.shape[1] or min(pages) < 0:
            raise KernelError(f"page {max(pages)} of a cache of {cache.keys.shape[1]}", "report this")
        # Tensors over them: the addresses stay good as long as this object.
        self._lent = [torch.frombuffer(lent, dtype=torch.int64) for lent in (spans, pages)] + [batch.cos, batch.sin]
        self.over = PASS.pack(self.rows, len(batch.spans), *(tensor.data_ptr() for tensor in self._lent))

    def attend(self, layer: int, qkv: Sequence[torch.Tensor], norms: Sequence[torch.Tensor]) -> torch.Tensor:
        """See architectures.ops.Attention."""
        out = torch.empty(self.rows, self.heads.queries * self.heads.dim)
        fields = attend_fields(self.heads, self.cache, layer, qkv, norms, out)
        self.context.run(STEP.pack(1, *NO_LINEAR, *fields), self.over)
        return out
