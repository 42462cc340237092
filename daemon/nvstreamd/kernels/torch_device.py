"""What do a model's programs mean? Torch interprets them step by step: the oracle that other devices are held against.

Where there was no C++ compiler it serves models as well, hundreds of times slower. Its bits are every other device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nvdma.fence import DONE, Fence
from nvdma.memory import Span
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints
from nvstreamd.kernels.check import check
from nvstreamd.kernels.device import ARITHMETIC, Scores, Tensors, Visit, hidden_of, scale_of, wait_for
from nvstreamd.kernels.host_bytes import host_bytes, vector_of
from nvstreamd.kernels.kv_memory import make_kv
from nvstreamd.kernels.rope import cos_and_sin, frequencies, magnitude
from nvstreamd.kernels.rows import PAGE_TOKENS, Rows
from nvstreamd.kernels.torch_arithmetic import fma, gate, product, rms_norm, route
from nvstreamd.kernels.torch_attention import attend, to_half, turn
from nvstreamd.program import (
    Add,
    AddNormed,
    Attend,
    Expert,
    Gated,
    Matrix,
    Mix,
    Model,
    Norm,
    Program,
    Project,
    Rope,
    Route,
    Score,
    Step,
    Value,
    columns_by_id,
)

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TorchStage:
    """A program, and where its tensors lie in the weights that come with each run."""

    program: Program
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class _Weights:
    """The weights at hand: a stage's own, then the model's constants."""

    own: tuple[Span, Tensors]
    constants: tuple[Span, Tensors]

    def _where(self, name: str) -> tuple[Span, Tensors]:
        return self.own if name in self.own[1] else self.constants

    def vector(self, name: str, columns: int) -> torch.Tensor:
        return torch.from_numpy(vector_of(*self._where(name), name, columns))

    def times(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """x [rows, columns] times a matrix, bias added."""
        span, tensors = self._where(matrix.name)
        tensor = tensors[matrix.name]
        data = host_bytes(span, tensor.offset, matrix.rows * tensor.type.row_bytes(matrix.columns))
        y = product(x, tensor.type, data, matrix.columns)
        return y if matrix.bias is None else y + self.vector(matrix.bias, matrix.rows)

    def normed(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return rms_norm(x, self.vector(norm.weight, x.shape[-1]), norm.epsilon)


class TorchDevice:
    """Torch on the processor. `prepare` and passes come after `open`."""

    name = "torch"
    arithmetic = ARITHMETIC
    own = None
    resting = None
    host = None

    def __init__(self, threads: int) -> None:
        torch.set_grad_enabled(False)
        torch.set_num_threads(max(1, threads))

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Makes room for keys and values."""
        self._model, self._constants = model, (constants, tensors)
        self._kv = [make_kv(group, count) for group, count in zip(model.kv, pages, strict=True)]
        self._values: dict[int, torch.Tensor] = {}
        self._columns: dict[int, int] = {}

    def prepare(self, program: Program, tensors: Tensors) -> TorchStage:
        """The program as it is. Raises KernelError for names that are nowhere."""
        check(program, self._model, tensors, self._constants[1])
        self._columns |= columns_by_id([program])
        return TorchStage(program, tensors)

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """Begins a pass. Raises KernelError for pages that are not there."""
        hidden = hidden_of(self._model, kind, embedded)
        rows.check([kv.pages for kv in self._kv], hidden.shape[0])
        self._values = {value: torch.zeros(rows.count, columns) for value, columns in self._columns.items()}
        self._values[self._model.hidden.id] = torch.from_numpy(hidden.copy())
        self._rows, self._positions = rows, rows.positions()
        self._angles: dict[Rope, Angles] = {}
        self._scores = torch.zeros(len(rows.wanted), self._model.vocabulary)
        self._unsound: int | None = None

    def run(self, ready: TorchStage, weights: Span, number: int, after: Fence) -> Fence:
        """Interprets a stage; it has ended when the call returns."""
        wait_for(after)
        at_hand = _Weights((weights, ready.tensors), self._constants)
        for step in ready.program.steps:
            self._step(step, at_hand)
        last = ready.program.steps[-1]
        left = self._piece(last) if isinstance(last, Score) else self._values[self._model.hidden.id]
        if self._unsound is None and not bool(torch.isfinite(left).all()):
            self._unsound = number
        return DONE

    def _piece(self, step: Score) -> torch.Tensor:
        return self._scores[:, step.first : step.first + step.weight.rows]

    def _step(self, step: Step, weights: _Weights) -> None:
        values = self._values
        match step:
            case Project(x, norm, matrices, out):
                h = values[x.id] if norm is None else weights.normed(values[x.id], norm)
                values |= {y.id: weights.times(h, w) for w, y in zip(matrices, out, strict=True)}
            case Gated(x, norm, of_gate, up, y, activation):
                h = weights.normed(values[x.id], norm)
                values[y.id] = gate(weights.times(h, of_gate), weights.times(h, up), activation)
            case Add(x, y, weight):
                values[x.id] = values[x.id] + weights.times(values[y.id], weight)
            case AddNormed(x, y, norm):
                values[x.id] = values[x.id] + weights.normed(values[y.id], norm)
            case Attend():
                values[step.out.id] = self._attend(step, weights)
            case Route(x, norm, router, h, of_ranks):
                values[h.id] = weights.normed(values[x.id], norm)
                self._routing, values[of_ranks.id] = route(weights.times(values[h.id], router), of_ranks.columns)
            case Mix(x, of_ranks, parts):
                ranked = values[parts.id].view(-1, of_ranks.columns, x.columns)
                total = torch.zeros(values[x.id].shape)
                for rank in range(of_ranks.columns):
                    total = fma(values[of_ranks.id][:, rank, None], ranked[:, rank], total)
                values[x.id] = values[x.id] + total
            case Expert():
                raise KernelError("an expert is run by `experts`", "report this")
            case Score(x, norm, weight):
                wanted = values[x.id][torch.tensor(self._rows.wanted, dtype=torch.long)]
                self._piece(step)[:] = weights.times(weights.normed(wanted, norm), weight)

    def _attend(self, step: Attend, weights: _Weights) -> torch.Tensor:
        q, k, v = (self._values[value.id].view(-1, value.columns // step.heads.dim, step.heads.dim)
                   for value in (step.q, step.k, step.v))
        if step.norms is not None:
            q, k = (weights.normed(x, norm) for x, norm in zip((q, k), step.norms, strict=True))
        q, k = (turn(x, *self._turned_by(step.rope, weights), interleaved=step.rope.interleaved) for x in (q, k))
        self._values |= {step.q.id: q.flatten(1), step.k.id: k.flatten(1)}
        kv = self._kv[step.group]
        keys, values = torch.from_numpy(kv.keys(step.layer)), torch.from_numpy(kv.values(step.layer))
        out = torch.zeros(q.shape)
        for stretch in self._rows.stretches:
            rows = slice(stretch.first, stretch.first + stretch.count)
            tokens = torch.arange(stretch.begin + stretch.count)
            pages, slots = torch.tensor(stretch.pages[step.group])[tokens // PAGE_TOKENS], tokens % PAGE_TOKENS
            new = slice(stretch.begin, None)
            keys[pages[new], :, :, slots[new]] = to_half(k[rows])
            values[pages[new], :, slots[new]] = to_half(v[rows])
            out[rows] = attend(q[rows], keys[pages, :, :, slots], values[pages, :, slots], tokens[new] + 1,
                               scale_of(step), self._model.kv[step.group].window)
        return out.flatten(1)

    def _turned_by(self, rope: Rope, weights: _Weights) -> Angles:
        if rope not in self._angles:
            factors = None if rope.factors is None else weights.vector(rope.factors, rope.dim // 2).numpy()
            cos, sin = cos_and_sin(frequencies(rope, factors), self._positions, magnitude(rope))
            self._angles[rope] = torch.from_numpy(cos), torch.from_numpy(sin)
        return self._angles[rope]

    def routing(self) -> Ints:
        """The experts of each row, by rank."""
        found: Ints = self._routing.numpy()
        return found

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Interprets experts; they have ended when the call returns."""
        wait_for(after)
        for visit in visits:
            (step,) = visit.ready.program.steps
            weights = _Weights((visit.weights, visit.ready.tensors), self._constants)
            places = torch.from_numpy(visit.places)
            used = step.parts.columns // step.down.rows
            h = self._values[step.h.id][places // used]
            inner = gate(weights.times(h, step.gate), weights.times(h, step.up), step.activation)
            self._values[step.parts.id].view(-1, step.down.rows)[places] = weights.times(inner, step.down)
        return DONE

    def scores(self) -> Scores:
        """The scores of the wanted rows."""
        return Scores(self._scores.numpy(), self._unsound)

    def peek(self, value: Value) -> Floats:
        """A copy of what a value holds in this pass."""
        found: Floats = self._values[value.id].numpy().copy()
        return found
