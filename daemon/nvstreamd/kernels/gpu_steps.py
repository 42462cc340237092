"""Which launches is a step of a program, for a pass of this shape? Names become addresses, values buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.device import scale_of
from nvstreamd.kernels.gpu_form import PIECE_BYTES, Placed, up
from nvstreamd.kernels.gpu_launch import (
    ROW_THREADS,
    ROW_WARPS,
    STAGED_BYTES,
    STAGES,
    Functions,
    Launch,
    products,
    tiles_of,
)
from nvstreamd.kernels.gpu_pass import FLOAT, Buffers, Tiling, activations_of, kv_bytes
from nvstreamd.kernels.gpu_structs import MOST_MATRICES, GpuActivations, GpuAttend, GpuMatrix, GpuProducts, GpuRows
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.program import (
    Activation,
    Add,
    AddNormed,
    Attend,
    Expert,
    Gated,
    KvGroup,
    Matrix,
    Mix,
    Norm,
    Project,
    Rope,
    Route,
    Score,
    Step,
    Value,
)

# Blocks of threads that all rows together have, at most.
BLOCKS, NORMED_BLOCKS = 4096, 512


@dataclass(frozen=True, slots=True)
class Weights:
    """The meaning of a stage's names: tensors from `address` on, then the model's constants."""

    own: Mapping[str, Placed]
    address: int
    constants: Mapping[str, Placed]
    constants_address: int

    def find(self, name: str) -> tuple[int, Placed]:
        """Where a tensor lies."""
        if name in self.own:
            return self.address + self.own[name].offset, self.own[name]
        placed = self.constants[name]
        return self.constants_address + placed.offset, placed


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass gives its stages: rows, buffers with room for `capacity` rows, the addresses of its facts."""

    rows: int
    wanted: int
    capacity: int
    columns: int
    vocabulary: int
    stretches: int
    values: Mapping[int, int]
    facts: Mapping[str, int]
    angles: Mapping[Rope, tuple[int, int]]
    tilings: Mapping[tuple[int, int], Tiling]
    scores: int
    routing: int
    parts: int


class Steps:
    """Makes launches. `groups` are the model's, `kv` the addresses of their pages."""

    def __init__(self, functions: Functions, buffers: Buffers, groups: Sequence[KvGroup], kv: Sequence[int]) -> None:
        self.functions = functions
        self.buffers = buffers
        self.groups = groups
        self.kv = kv
        # What the step before has left quantised, by the value that it is.
        self._left: dict[int, GpuActivations] = {}

    def launches(self, step: Step, weights: Weights, of: Pass) -> list[Launch]:
        """The launches of a step, in order; those of the step before came just now. Raises KernelError."""
        left, self._left = self._left, {}
        match step:
            case Project(x, norm, matrices, out):
                pairs = [(matrix, of.values[y.id], matrix.rows) for matrix, y in zip(matrices, out, strict=True)]
                return self._linear(x, norm, pairs, weights, of)
            case Gated(x, norm, of_gate, up_, out, activation):
                beside = self.buffers.at("beside the gate", FLOAT * of.capacity * out.columns)
                pairs = [(of_gate, of.values[out.id], out.columns), (up_, beside, out.columns)]
                found = self._linear(x, norm, pairs, weights, of)
                return [*found, self.gate(of.values[out.id], beside, out.columns, of.rows, activation,
                                          self._leave(out, out.columns, of))]
            case Add(x, h, weight):
                pairs = [(weight, of.values[x.id], weight.rows)]
                return self._linear(h, None, pairs, weights, of, adds=True, ready=left.get(h.id))
            case AddNormed(x, h, norm):
                call = self._rows_of(of.values[h.id], h.columns, norm, weights)
                call.out = of.values[x.id]
                return [self._row_launch("add_normed_rows", call, 1, of.rows)]
            case Attend():
                return self._attend(step, weights, of)
            case Score(x, norm, weight, first):
                return self._score(x, norm, weight, first, weights, of)
            case Route():
                return self._route(step, weights, of)
            case Mix(x, ranks, parts):
                call = GpuRows(x=of.values[parts.id], other=of.values[ranks.id], out=of.values[x.id],
                               columns=x.columns, used=ranks.columns)
                return [self._row_launch("mix_rows", call, up(x.columns, ROW_THREADS), of.rows)]
            case Expert():
                raise KernelError("an expert is run by `experts`", "report this")

    def look(self, address: int, columns: int, apart: int, rows: int, number: int, of: Pass) -> Launch:
        """Notes the stage `number` if there is NaN or infinity in rows that lie so many floats apart."""
        call = GpuRows(x=address, out=of.facts["unsound"], columns=columns, of_each=apart, number=number)
        return self._row_launch("look_at_rows", call, min(up(columns, ROW_THREADS), 8), rows)

    def scatter(self, source: int, places: int, rows: int, to: int, columns: int) -> Launch:
        """Rows at `source` become those of `places` [rows] int64 at `to`."""
        call = GpuRows(x=source, out=to, columns=columns, picked=places)
        return self._row_launch("scatter_rows", call, min(up(columns, ROW_THREADS), 8), rows)

    def _row_launch(self, name: str, call: GpuRows, across: int, rows: int, block_memory: int = 0) -> Launch:
        return Launch(self.functions.of_rows(name), (across, rows, 1), ROW_THREADS, block_memory, call)

    def _rows_of(self, address: int, columns: int, norm: Norm | None, weights: Weights) -> GpuRows:
        call = GpuRows(x=address, columns=columns, used=1)
        if norm is not None:
            call.norm, placed = weights.find(norm.weight)
            call.norm_type, call.epsilon = placed.type.id, norm.epsilon
        return call

    def _across(self, columns: int, rows: int, *, normed: bool) -> int:
        """The blocks that share a row. Each sums up all of it where there is a norm."""
        return min(up(columns, 32 * ROW_WARPS), max(1, (NORMED_BLOCKS if normed else BLOCKS) // rows))

    def prepared(self, call: GpuRows, rows: int, out: int, quantised: GpuActivations | None) -> Launch:
        """Rows normed and quantised, as is wanted."""
        call.out = out
        if quantised is not None:
            call.quantised = quantised
        memory = FLOAT * call.columns if call.norm and FLOAT * call.columns <= STAGED_BYTES else 0
        call.staged = int(memory > 0)
        return self._row_launch(STAGES, call, self._across(call.columns, rows, normed=bool(call.norm)), rows, memory)

    def gate(self, gate: int, other: int, columns: int, rows: int, activation: Activation,
             quantised: GpuActivations | None = None, places: int = 0) -> Launch:
        """A gate times what is beside it, where the gate lies; quantised, too, where that is wanted.

        Where there are `places` [rows] int64, a row of -1 is nobody's.
        """
        call = GpuRows(x=gate, other=other, out=gate, columns=columns, gelu=int(activation is Activation.GELU),
                       picked=places)
        if quantised is not None:
            call.quantised = quantised
        return self._row_launch("gate_rows", call, self._across(columns, rows, normed=False), rows)

    def _linear(self, x: Value, norm: Norm | None, pairs: Sequence[tuple[Matrix, int, int]], weights: Weights,
                of: Pass, *, adds: bool = False, ready: GpuActivations | None = None) -> list[Launch]:
        call = self._rows_of(of.values[x.id], x.columns, norm, weights)
        return self.multiply(call, pairs, weights, of.rows, of.capacity, adds=adds, ready=ready)

    def _leave(self, value: Value, block: int, of: Pass) -> GpuActivations | None:
        """Where a step leaves its result quantised for the next, if whole blocks of 32 come at once."""
        if block % 32:
            return None
        self._left[value.id] = activations_of(self.buffers, "left", of.rows, of.capacity, value.columns)
        return self._left[value.id]

    def multiply(self, call: GpuRows, pairs: Sequence[tuple[Matrix, int, int]], weights: Weights, rows: int,
                 capacity: int, *, adds: bool = False, places: int = 0, name: str = "x",
                 ready: GpuActivations | None = None) -> list[Launch]:
        """Rows as `call` prepares them, times matrices whose products go to an address, so many floats a row apart.

        Where they are `ready`, quantised, nothing is prepared.
        """
        kinds = {weights.find(matrix.name)[1].type for matrix, _, _ in pairs}
        floats = any(kind not in PIECE_BYTES for kind in kinds)
        quantised = None
        if any(kind in PIECE_BYTES for kind in kinds):
            quantised = ready or activations_of(self.buffers, name, rows, capacity, call.columns)
        source = call.x
        if floats and (call.norm or call.picked):
            source = self.buffers.at(f"{name} normed", FLOAT * capacity * call.columns)
        found: list[Launch] = []
        if (quantised is not None and ready is None) or source != call.x:
            found.append(self.prepared(call, rows, source if source != call.x else 0, quantised))
        for kind, alike in groupby(pairs, key=lambda pair: weights.find(pair[0].name)[1].type):
            batch = list(alike)
            for begin in range(0, len(batch), MOST_MATRICES):
                of_products = GpuProducts(floats=source, rows=rows, columns=call.columns, blocks=call.columns // 32,
                                          quads=up(call.columns, 128), adds=int(adds), places=places)
                if quantised is not None:
                    of_products.x = quantised
                found.append(products(self.functions, kind, of_products, [
                    self._matrix(*pair, weights, kind) for pair in batch[begin : begin + MOST_MATRICES]]))
        return found

    def _matrix(self, matrix: Matrix, to: int, stride: int, weights: Weights, kind: GgmlType) -> GpuMatrix:
        address, _ = weights.find(matrix.name)
        found = GpuMatrix(data=address, y=to, rows=matrix.rows, stride=stride, tiles=tiles_of(matrix.rows),
                          type=kind.id)
        if matrix.bias is not None:
            found.bias, placed = weights.find(matrix.bias)
            found.bias_type = placed.type.id
        return found

    def _score(self, x: Value, norm: Norm, weight: Matrix, first: int, weights: Weights, of: Pass) -> list[Launch]:
        if of.wanted == 0:
            return []
        call = self._rows_of(of.values[x.id], x.columns, norm, weights)
        call.picked = of.facts["wanted"]
        pairs = [(weight, of.scores + FLOAT * first, of.vocabulary)]
        return self.multiply(call, pairs, weights, of.wanted, of.capacity)

    def _route(self, step: Route, weights: Weights, of: Pass) -> list[Launch]:
        h, used = of.values[step.h.id], step.weights.columns
        scores = self.buffers.at("router", FLOAT * of.capacity * step.router.rows)
        normed = self._rows_of(of.values[step.x.id], step.x.columns, step.norm, weights)
        plain = GpuRows(x=h, columns=step.h.columns, used=1)
        call = GpuRows(x=scores, other=of.routing, out=of.values[step.weights.id], columns=step.router.rows,
                       of_each=step.router.rows, used=used)
        pairs = [(step.router, scores, step.router.rows)]
        return [self.prepared(normed, of.rows, h, None), *self.multiply(plain, pairs, weights, of.rows, of.capacity),
                Launch(self.functions.of_rows("route_rows"), (1, of.rows, 1), 32, 0, call)]

    def _attend(self, step: Attend, weights: Weights, of: Pass) -> list[Launch]:
        group, heads = self.groups[step.group], step.heads
        ratio = heads.queries // heads.keys
        tiling = of.tilings[step.group, ratio]
        call = GpuAttend(
            q=of.values[step.q.id], k=of.values[step.k.id], v=of.values[step.v.id], out=of.values[step.out.id],
            memory=self.kv[step.group], page_bytes=kv_bytes(group),
            layer_at=2 * step.layer * heads.keys * heads.dim * PAGE_TOKENS,
            stretches=of.facts[f"stretches {step.group}"], pages=of.facts[f"pages {step.group}"], tiles=tiling.at,
            heads=heads.queries, kv_heads=heads.keys, dim=heads.dim, window=group.window or 0,
            interleaved=int(step.rope.interleaved), scale=scale_of(step), parts=of.parts, most_chunks=tiling.chunks)
        call.cos, call.sin = of.angles[step.rope]
        quantised = self._leave(step.out, heads.dim, of)
        if quantised is not None:
            call.quantised = quantised
        if step.norms is not None:
            call.epsilon = step.norms[0].epsilon
            call.q_norm, placed = weights.find(step.norms[0].weight)
            call.q_norm_type = placed.type.id
            call.k_norm, placed = weights.find(step.norms[1].weight)
            call.k_norm_type = placed.type.id
        everybody = heads.queries + 2 * heads.keys
        place = self.functions.of_rows("place_rows")
        found = [Launch(place, (up(everybody, ROW_WARPS), of.rows, 1), ROW_THREADS, 0, call)]
        if tiling.chunks == 0:
            return [*found, self._attention("through", tiling, 1, heads.keys, call)]
        return [*found, self._attention("chunk", tiling, tiling.chunks, heads.keys, call),
                self._attention("join", tiling, 1, heads.keys, call)]

    def _attention(self, what: str, tiling: Tiling, chunks: int, keys: int, call: GpuAttend) -> Launch:
        return Launch(self.functions.of_rows(f"attend_{what}_{tiling.size}"), (chunks, keys, tiling.tiles), ROW_THREADS,
                      0, call)
