"""How does the processor run a model's programs? Each stage is one call of the C++ kernels.

A token of a small model takes a few milliseconds: a call an operation from Python would be a good part of them. Steps
name values by number and weights by offset, so that what `prepare` made holds wherever the weights lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvdma.fence import DONE, Fence
from nvdma.memory import Span
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints
from nvstreamd.kernels.check import check
from nvstreamd.kernels.cpu_library import CpuContext, CpuSteps
from nvstreamd.kernels.cpu_pass import PassMemory
from nvstreamd.kernels.cpu_steps import translate
from nvstreamd.kernels.cpu_structs import CpuVisit
from nvstreamd.kernels.device import ARITHMETIC, Scores, Tensors, Visit, hidden_of, wait_for
from nvstreamd.kernels.host_bytes import vector_of
from nvstreamd.kernels.rope import frequencies, magnitude
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Attend, Model, Program, Rope, Route, Value, columns_by_id


class CpuDevice:
    """The C++ kernels. `prepare` and passes come after `open`."""

    arithmetic = ARITHMETIC
    own = None
    resting = None
    host = None

    def __init__(self, context: CpuContext) -> None:
        self.context = context
        self.name = f"C++ for {context.kernel.name}, {context.threads} threads"

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Makes room for keys and values; the model's constants stay where they are."""
        self._model = model
        self._constants, self._tensors = constants, tensors
        self._ropes: dict[Rope, int] = {}
        self._memory = PassMemory(model, constants.address, pages)

    def prepare(self, program: Program, tensors: Tensors) -> CpuSteps:
        """The program's steps as the library wants them. Raises KernelError."""
        check(program, self._model, tensors, self._tensors)
        for step in program.steps:
            if isinstance(step, Attend):
                self._turn_by(step.rope)
            if isinstance(step, Route):
                self._memory.make_room_for_routing(step.weights.columns)
        self._memory.make_room(columns_by_id([program]))
        return self.context.check([
            translate(step, tensors, self._tensors, self._ropes, self._model.kv) for step in program.steps])

    def _turn_by(self, rope: Rope) -> None:
        if rope not in self._ropes:
            factors = None if rope.factors is None else vector_of(self._constants, self._tensors, rope.factors,
                                                                  rope.dim // 2)
            self._ropes[rope] = self._memory.turn_by(frequencies(rope, factors), magnitude(rope))

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """Begins a pass. Raises KernelError for pages that are not there."""
        hidden = hidden_of(self._model, kind, embedded)
        self._memory.begin(rows, hidden, self.context)

    def run(self, ready: CpuSteps, weights: Span, number: int, after: Fence) -> Fence:
        """Runs a stage; it has ended when the call returns."""
        wait_for(after)
        self.context.run(ready, number, weights.address, self._memory.over)
        return DONE

    def routing(self) -> Ints:
        """The experts of each row, by rank."""
        return self._memory.routing()

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Runs experts; they have ended when the call returns."""
        wait_for(after)
        self.context.experts([
            CpuVisit(visit.ready.address, visit.weights.address, visit.places.ctypes.data, visit.places.size)
            for visit in visits], self._memory.over)
        return DONE

    def scores(self) -> Scores:
        """The scores of the wanted rows."""
        unsound = int(self._memory.over.unsound)
        return Scores(self._memory.scores, None if unsound < 0 else unsound)

    def peek(self, value: Value) -> Floats:
        """A copy of what a value holds in this pass."""
        return self._memory.view(value).copy()

    def view(self, value: Value) -> Floats:
        """What a value holds in this pass, to be read and written by whoever works beside this device."""
        return self._memory.view(value)
