"""Which launches is an expert, over the rows that it serves?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_form import PIECE_BYTES, Placed, up
from nvstreamd.kernels.gpu_launch import Launch, products_of_pairs, tiles_of
from nvstreamd.kernels.gpu_pass import FLOAT, activations_of
from nvstreamd.kernels.gpu_steps import Pass, Steps, Weights
from nvstreamd.kernels.gpu_structs import GpuActivations, GpuMatrix, GpuProducts, GpuRows
from nvstreamd.program import Expert, Matrix


def expert_launches(steps: Steps, step: Expert, weights: Weights, of: Pass, places: int, count: int) -> list[Launch]:
    """Gate, up, and down, whose products go to the ranks at `places`: `count` int64, row * used + rank each."""
    used = step.parts.columns // step.down.rows
    # A row goes to an expert at one rank.
    inner, capacity = step.gate.rows, max(of.capacity, count)
    gate = steps.buffers.at("an expert's gate", FLOAT * capacity * inner)
    beside = steps.buffers.at("beside an expert's gate", FLOAT * capacity * inner)
    served = GpuRows(x=of.values[step.h.id], columns=step.h.columns, picked=places, used=used)
    halfway = GpuRows(x=gate, columns=inner, used=1)
    return [
        *steps.multiply(served, [(step.gate, gate, inner), (step.up, beside, inner)], weights, count, capacity,
                        name="an expert's x"),
        steps.gate(gate, beside, inner, count, step.activation),
        *steps.multiply(halfway, [(step.down, of.values[step.parts.id], step.down.rows)], weights, count, capacity,
                        places=places, name="an expert's h"),
    ]


def check_alike(step: Expert, forms: Sequence[Mapping[str, Placed]]) -> None:
    """Raises KernelError unless all experts of a layer lie alike in VRAM, in blocks, without biases."""
    for matrix in (step.gate, step.up, step.down):
        placed = {(form[matrix.name].type, form[matrix.name].offset) for form in forms}
        if len(placed) != 1 or next(iter(placed))[0] not in PIECE_BYTES or matrix.bias is not None:
            raise KernelError(f"{matrix.name[:200]}: a layer's experts do not lie alike, or are not in blocks",
                              "run the model on the processor")


def all_experts(steps: Steps, step: Expert, form: Mapping[str, Placed], table: int, of: Pass) -> list[Launch]:
    """All experts of a layer over the rows that were routed to them, wherever `table` says that each lies.

    Each pair of a row and one of its experts is a product of its own; nobody asks which they are.
    """
    used = step.parts.columns // step.down.rows
    pairs, inner, capacity = of.rows * used, step.gate.rows, of.capacity * used
    gate = steps.buffers.at("experts' gates", FLOAT * capacity * inner)
    beside = steps.buffers.at("beside experts' gates", FLOAT * capacity * inner)
    x = activations_of(steps.buffers, "experts' x", of.rows, of.capacity, step.h.columns)
    h = activations_of(steps.buffers, "experts' h", pairs, capacity, inner)
    rows = GpuRows(x=of.values[step.h.id], columns=step.h.columns, used=1)
    return [
        steps.prepared(rows, of.rows, 0, x),
        *_of_pairs(steps, [(step.gate, gate), (step.up, beside)], form, table, of, x, used, pairs),
        steps.gate(gate, beside, inner, pairs, step.activation, h),
        *_of_pairs(steps, [(step.down, of.values[step.parts.id])], form, table, of, h, 1, pairs),
    ]


def _of_pairs(steps: Steps, wanted: Sequence[tuple[Matrix, int]], form: Mapping[str, Placed], table: int, of: Pass,
              x: GpuActivations, of_each: int, pairs: int) -> list[Launch]:
    found = []
    for kind, alike in groupby(wanted, key=lambda each: form[each[0].name].type):
        matrices = [GpuMatrix(data=form[matrix.name].offset, y=y, rows=matrix.rows, stride=matrix.rows,
                              tiles=tiles_of(matrix.rows), type=kind.id) for matrix, y in alike]
        columns = wanted[0][0].columns
        call = GpuProducts(x=x, rows=1, columns=columns, blocks=columns // 32, quads=up(columns, 128),
                           choices=of.routing, table=table, of_each=of_each)
        found.append(products_of_pairs(steps.functions, kind, call, matrices, pairs))
    return found
