"""How do the C++ kernels look from the engine? One call an operation, over the addresses of arrays.

Rows never see each other (cpu/integers.h, cpu/floats.h, cpu/attention.h say why), so a batch needs no padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nvstreamd.errors import KernelError
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Floats, Heads
from nvstreamd.kernels.cpu_library import ADD, GATED, NO_LINEAR, PASS, SPAN, STEP, STORE, CpuContext
from nvstreamd.kernels.weight import Weight

MOST_MATRICES = 3
NO_MATRIX = (0, 0, 0, 0, 0, 0)
FLOAT_BYTES = 4


def new(rows: int, columns: int) -> Floats:
    """Room for a result [rows, columns]."""
    return np.empty((rows, columns), np.float32)


def linear_fields(mode: int, x: Floats, norm: Floats | None, epsilon: float, weights: Sequence[Weight],
                  outputs: Sequence[Floats]) -> list[float]:
    """The fields of a struct Linear: all weights share the activations x [rows, in]."""
    fields = [x.ctypes.data, 0 if norm is None else norm.ctypes.data, *x.shape, epsilon, mode, len(weights)]
    for weight, y in zip(weights, outputs, strict=True):
        bias = 0 if weight.bias is None else weight.bias.ctypes.data
        fields += (weight.data.ctypes.data, weight.rows, weight.type.id, y.ctypes.data, y.strides[0] // FLOAT_BYTES,
                   bias)
    for _ in range(MOST_MATRICES - len(weights)):
        fields += NO_MATRIX
    return fields


def attend_fields(heads: Heads, cache: Cache, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats],
                  out: Floats) -> list[float]:
    """The fields of a struct Attend, but for those of the pass."""
    arrays = (*qkv, out, cache.keys[layer], cache.values[layer])
    norm_addresses = [norm.ctypes.data for norm in norms] or [0, 0]
    return [*(array.ctypes.data for array in arrays), 0, 0, 0, 0, *norm_addresses, 0, heads.queries, heads.keys,
            heads.dim, heads.epsilon, int(heads.interleaved)]


class CpuOps:
    """The C++ kernels; `name` is what status shows."""

    row_tile = 1

    def __init__(self, context: CpuContext) -> None:
        self.context = context
        self.name = f"C++ for {context.kernel.name}, {context.threads} threads"

    def linear(self, x: Floats, weight: Weight, y: Floats) -> None:
        """y [rows, out] float32 = x [rows, in] float32 times weight.T; y's rows may lie apart."""
        self.context.linear(*linear_fields(STORE, x, None, 0.0, (weight,), (y,)))

    def project(self, x: Floats, norm: Floats, epsilon: float, weights: Sequence[Weight]
                ) -> list[Floats]:
        """See architectures.ops.Ops."""
        outputs = [new(x.shape[0], weight.rows) for weight in weights]
        self.context.linear(*linear_fields(STORE, x, norm, epsilon, weights, outputs))
        return outputs

    def gated(self, x: Floats, norm: Floats, epsilon: float, gate: Weight, up: Weight) -> Floats:
        """See architectures.ops.Ops."""
        h = new(x.shape[0], gate.rows)
        self.context.linear(*linear_fields(GATED, x, norm, epsilon, (gate, up), (h, h)))
        return h

    def add_linear(self, x: Floats, h: Floats, weight: Weight) -> None:
        """See architectures.ops.Ops."""
        self.context.linear(*linear_fields(ADD, h, None, 0.0, (weight,), (x,)))

    def rms_norm(self, x: Floats, weight: Floats, epsilon: float) -> Floats:
        """RMSNorm of x [rows, n]."""
        rows, columns = x.shape
        y = new(rows, columns)
        self.context.norm(x.ctypes.data, weight.ctypes.data, rows, columns, epsilon, y.ctypes.data)
        return y

    def finite(self, x: Floats) -> bool:
        """Whether no element is NaN or infinite; x is contiguous, or rows of a wider array."""
        if x.flags.c_contiguous:
            return self.context.finite(x.ctypes.data, x.size)
        return all(self.context.finite(row.ctypes.data, row.size) for row in x)

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
        # Arrays over them: the addresses stay good as long as this object.
        self._lent: list[npt.NDArray[Any]] = [np.frombuffer(spans, np.int64), np.frombuffer(pages, np.int64), batch.cos,
                                              batch.sin]
        self.over = PASS.pack(self.rows, len(batch.spans), *(array.ctypes.data for array in self._lent))

    def attend(self, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats]) -> Floats:
        """See architectures.ops.Attention."""
        out = new(self.rows, self.heads.queries * self.heads.dim)
        fields = attend_fields(self.heads, self.cache, layer, qkv, norms, out)
        self.context.run(STEP.pack(1, *NO_LINEAR, *fields), self.over)
        return out
