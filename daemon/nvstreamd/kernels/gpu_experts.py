"""Which launches is an expert, over the rows that it serves?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Longs
from nvstreamd.kernels.gpu_form import PIECE_BYTES, Placed, up
from nvstreamd.kernels.gpu_launch import (
    EIGHT,
    ROW_THREADS,
    Launch,
    group_size,
    products_of_groups,
    products_of_pairs,
    tiles_of,
)
from nvstreamd.kernels.gpu_pass import FLOAT, LONG, activations_of, bucket
from nvstreamd.kernels.gpu_steps import Pass, Steps, Weights
from nvstreamd.kernels.gpu_structs import (
    GROUP_BYTES,
    GpuActivations,
    GpuGrouping,
    GpuMatrix,
    GpuProducts,
    GpuRows,
)
from nvstreamd.program import Expert, Matrix


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one expert each, `size` at most, `most` groups at the address `at`, over `slots` rows in all.

    `places` [slots] int64 says which pair of a row and a rank each is, row * used + rank, -1 for nobody.
    """

    at: int
    most: int
    size: int
    places: int
    slots: int


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
    matrices = (step.gate, step.up, step.down)
    alike = len({tuple((form[each.name].type, form[each.name].offset) for each in matrices) for form in forms}) == 1
    if not alike or not in_groups(step, forms[0]):
        raise KernelError(f"{step.gate.name[:200]}: a layer's experts do not lie alike, or are not in blocks",
                          "run the model on the processor")


def in_groups(step: Expert, form: Mapping[str, Placed]) -> bool:
    """True where an expert may be one of a group's: its weights are in blocks, and it has no biases."""
    return all(form[matrix.name].type in PIECE_BYTES and matrix.bias is None
               for matrix in (step.gate, step.up, step.down))


def all_experts(steps: Steps, step: Expert, form: Mapping[str, Placed], table: int, experts: int, of: Pass
                ) -> list[Launch]:
    """All experts of a layer over the rows that were routed to them, wherever `table` says that each lies.

    Nobody asks which they are. Where rows are few, each pair of a row and one of its experts is a product of its own;
    else the card deals them to groups first.
    """
    used = step.parts.columns // step.down.rows
    pairs = of.rows * used
    if pairs <= experts:
        return _by_pairs(steps, step, form, table, of, used)
    size = group_size(pairs, experts)
    # Every expert may begin an eight, and a group, that it does not fill.
    slots, most = pairs + (EIGHT - 1) * experts, experts + pairs // size
    groups = Groups(steps.buffers.at("groups", most * GROUP_BYTES), most, size,
                    steps.buffers.at("places of groups", LONG * slots), slots)
    call = GpuGrouping(choices=of.routing, pairs=pairs, experts=experts, table=table, size=size, places=groups.places,
                       slots=slots, groups=groups.at, most=most)
    return [Launch(steps.functions.of_rows("group_pairs"), (1, 1, 1), ROW_THREADS, 0, call),
            *grouped_experts(steps, step, form, groups, of)]


def _by_pairs(steps: Steps, step: Expert, form: Mapping[str, Placed], table: int, of: Pass, used: int) -> list[Launch]:
    pairs, inner, capacity = of.rows * used, step.gate.rows, of.capacity * used
    gate = steps.buffers.at("experts' gates", FLOAT * capacity * inner)
    beside = steps.buffers.at("beside experts' gates", FLOAT * capacity * inner)
    x = activations_of(steps.buffers, "experts' x", of.rows, of.capacity, step.h.columns)
    h = activations_of(steps.buffers, "experts' h", pairs, capacity, inner)
    rows = GpuRows(x=of.values[step.h.id], columns=step.h.columns, used=1)

    def products(wanted: Sequence[tuple[Matrix, int]], by: GpuActivations, of_each: int) -> list[Launch]:
        call = GpuProducts(choices=of.routing, table=table, of_each=of_each)
        return [products_of_pairs(steps.functions, *each, pairs) for each in _alike(wanted, form, by, call)]

    return [
        steps.prepared(rows, of.rows, 0, x),
        *products([(step.gate, gate), (step.up, beside)], x, used),
        steps.gate(gate, beside, inner, pairs, step.activation, h),
        *products([(step.down, of.values[step.parts.id])], h, 1),
    ]


def grouped_experts(steps: Steps, step: Expert, form: Mapping[str, Placed], groups: Groups, of: Pass) -> list[Launch]:
    """Experts that lie alike over the rows of `groups`; what each finds goes to the rank that it has."""
    used, inner = step.parts.columns // step.down.rows, step.gate.rows
    slots = groups.slots
    gate = steps.buffers.at("groups' gates", FLOAT * slots * inner)
    beside = steps.buffers.at("beside groups' gates", FLOAT * slots * inner)
    x = activations_of(steps.buffers, "groups' x", slots, slots, step.h.columns)
    h = activations_of(steps.buffers, "groups' h", slots, slots, inner)
    rows = GpuRows(x=of.values[step.h.id], columns=step.h.columns, picked=groups.places, used=used)

    def products(wanted: Sequence[tuple[Matrix, int]], by: GpuActivations, places: int) -> list[Launch]:
        call = GpuProducts(groups=groups.at, places=places)
        return [products_of_groups(steps.functions, *each, groups.most, groups.size)
                for each in _alike(wanted, form, by, call)]

    return [
        steps.prepared(rows, slots, 0, x),
        *products([(step.gate, gate), (step.up, beside)], x, 0),
        steps.gate(gate, beside, inner, slots, step.activation, h, groups.places),
        *products([(step.down, of.values[step.parts.id])], h, groups.places),
    ]


def _alike(wanted: Sequence[tuple[Matrix, int]], form: Mapping[str, Placed], x: GpuActivations, call: GpuProducts
           ) -> list[tuple[GgmlType, GpuProducts, list[GpuMatrix]]]:
    """Matrices and where their products go, by their types; each with a call that is as `call` but for that."""
    found = []
    for kind, alike in groupby(wanted, key=lambda each: form[each[0].name].type):
        matrices = [GpuMatrix(data=form[matrix.name].offset, y=y, rows=matrix.rows, stride=matrix.rows,
                              tiles=tiles_of(matrix.rows), type=kind.id) for matrix, y in alike]
        columns = wanted[0][0].columns
        own = GpuProducts.from_buffer_copy(call)
        own.x, own.columns, own.blocks, own.quads = x, columns, columns // 32, up(columns, 128)
        found.append((kind, own, matrices))
    return found


def deal(visits: Sequence[tuple[int, Longs]], send: Callable[[Longs], int]) -> Groups:
    """Visits, the address of an expert's weights and the places of its pairs each, dealt to groups by the host.

    `send` brings a list to the card. In it are powers of two of groups and of slots, the last of them nobody's: alike
    passes are the same work.
    """
    size = group_size(sum(places.size for _, places in visits), len(visits))
    step = 1 if size == 1 else EIGHT
    found: list[tuple[int, int, int]] = []
    slots: list[int] = []
    for base, places in visits:
        at = len(slots)
        found += [(base, at + begin, min(size, places.size - begin)) for begin in range(0, places.size, size)]
        slots += [*places.tolist(), *[-1] * (-places.size % step)]
    most, many = bucket(len(found)), bucket(len(slots))
    numbers = np.full(3 * most + many, -1, np.int64)
    numbers[: 3 * len(found)] = [number for group in found for number in group]
    numbers[3 * len(found) : 3 * most] = 0
    numbers[3 * most : 3 * most + len(slots)] = slots
    to = send(numbers)
    return Groups(to, most, size, to + 3 * most * LONG, many)
