"""How is a whole layer run in one call? Its operations are written down once, with fixed buffers between them.

A token of a small model takes a few milliseconds: five calls a layer from Python would be a good part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvstreamd.kernels.batch import Cache, Floats, Heads
from nvstreamd.kernels.cpu_library import ADD, GATED, NO_ATTEND, NO_LINEAR, STEP, STORE
from nvstreamd.kernels.cpu_ops import CpuAttention, CpuOps, attend_fields, linear_fields, new
from nvstreamd.kernels.weight import Weight

FEWEST_ROWS = 16


class Recorder:
    """Looks like the kernels and the attention of a pass, and writes down what it is asked to do.

    x is `hidden` [capacity, width]; results are buffers of as many rows, the n-th of a layer the same in every layer.
    """

    def __init__(self, hidden: Floats, heads: Heads, cache: Cache, buffers: dict[tuple[int, int], Floats]
                 ) -> None:
        self.hidden = hidden
        self.heads = heads
        self.cache = cache
        self.steps: list[bytes] = []
        self._buffers = buffers
        self._taken = 0

    def _buffer(self, columns: int) -> Floats:
        key = (self._taken, columns)
        self._taken += 1
        if key not in self._buffers:
            self._buffers[key] = new(self.hidden.shape[0], columns)
        return self._buffers[key]

    def _linear(self, fields: Sequence[float]) -> None:
        self.steps.append(STEP.pack(0, *fields, *NO_ATTEND))

    def project(self, x: Floats, norm: Floats, epsilon: float, weights: Sequence[Weight]
                ) -> list[Floats]:
        """See architectures.ops.Ops."""
        outputs = [self._buffer(weight.rows) for weight in weights]
        self._linear(linear_fields(STORE, x, norm, epsilon, weights, outputs))
        return outputs

    def gated(self, x: Floats, norm: Floats, epsilon: float, gate: Weight, up: Weight) -> Floats:
        """See architectures.ops.Ops."""
        h = self._buffer(gate.rows)
        self._linear(linear_fields(GATED, x, norm, epsilon, (gate, up), (h, h)))
        return h

    def add_linear(self, x: Floats, h: Floats, weight: Weight) -> None:
        """See architectures.ops.Ops."""
        self._linear(linear_fields(ADD, h, None, 0.0, (weight,), (x,)))

    def attend(self, layer: int, qkv: Sequence[Floats], norms: Sequence[Floats]) -> Floats:
        """See architectures.ops.Attention."""
        out = self._buffer(self.heads.queries * self.heads.dim)
        self.steps.append(STEP.pack(1, *NO_LINEAR, *attend_fields(self.heads, self.cache, layer, qkv, norms, out)))
        return out


Describe = Callable[[Recorder], None]


class Programs:
    """Programs of layers by any key, all over one hidden state. Addresses in them stay good until `forget`."""

    def __init__(self, ops: CpuOps, width: int, heads: Heads, cache: Cache) -> None:
        self.ops = ops
        self.heads = heads
        self.cache = cache
        self.hidden = new(FEWEST_ROWS, width)
        self._programs: dict[object, bytes] = {}
        self._buffers: dict[tuple[int, int], Floats] = {}

    def begin(self, x: Floats) -> Floats:
        """Takes a pass's hidden state [rows, width]; returns it where the layers change it."""
        if x.shape[0] > self.hidden.shape[0]:
            self.hidden = new(max(x.shape[0], 2 * self.hidden.shape[0]), x.shape[1])
            self._programs.clear()
            self._buffers.clear()
        hidden = self.hidden[: x.shape[0]]
        hidden[:] = x
        return hidden

    def run(self, key: object, describe: Describe, attention: CpuAttention) -> None:
        """Runs the layer that `key` stands for; `describe` says, the first time, what it does to the hidden state."""
        program = self._programs.get(key)
        if program is None:
            recorder = Recorder(self.hidden, self.heads, self.cache, self._buffers)
            describe(recorder)
            program = self._programs[key] = b"".join(recorder.steps)
        self.ops.context.run(program, attention.over)

    def forget(self) -> None:
        """Drops all programs, before what they point to goes."""
        self._programs.clear()
