"""Can a program be run on weights laid out like these? Looked at once, before a kernel believes its sizes.

Architectures and manifests have checked files by then. A kernel that reads past a tensor is worth a second look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from nvstreamd.errors import KernelError
from nvstreamd.kernels.device import Tensors
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
    Route,
    Score,
    Step,
    Value,
)

# (what is wrong if it does not hold, whether it holds).
Claims = Iterator[tuple[str, bool]]


def check(program: Program, model: Model, own: Tensors, constants: Tensors) -> None:
    """Raises KernelError when a step's sizes do not fit its tensors, its values or the model."""
    shapes = {name: tensor.shape for tensors in (constants, own) for name, tensor in tensors.items()}
    for step in program.steps:
        for name, shape in tensors_of(step):
            if name not in shapes:
                raise KernelError(f"a program wants {name[:200]}, which its weights do not have", "report this")
            if shapes[name] != shape:
                raise KernelError(f"a program wants {name[:200]} of {shape}, it has {shapes[name]}", "report this")
        for what, holds in _claims(step, model):
            if not holds:
                raise KernelError(f"a program's {type(step).__name__} has {what} that does not fit", "report this")


def tensors_of(step: Step) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that a step wants, with their shapes."""
    match step:
        case Project(x, norm, weights, _):
            yield from _vectors([norm] if norm else [], x.columns)
            yield from _matrices(weights)
        case Gated(x, norm, gate, up):
            yield from _vectors([norm], x.columns)
            yield from _matrices((gate, up))
        case Add(_, _, weight):
            yield from _matrices((weight,))
        case AddNormed(_, h, norm):
            yield from _vectors([norm], h.columns)
        case Attend():
            yield from _vectors(step.norms or (), step.heads.dim)
            if step.rope.factors is not None:
                yield step.rope.factors, (step.rope.dim // 2,)
        case Score(x, norm, weight) | Route(x, norm, weight):
            yield from _vectors([norm], x.columns)
            yield from _matrices((weight,))
        case Expert(_, gate, up, down):
            yield from _matrices((gate, up, down))
        case Mix():
            pass


def _vectors(norms: Iterable[Norm], columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in norms:
        yield norm.weight, (columns,)


def _matrices(weights: Iterable[Matrix]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for weight in weights:
        yield weight.name, (weight.rows, weight.columns)
        if weight.bias is not None:
            yield weight.bias, (weight.rows,)


def _claims(step: Step, model: Model) -> Claims:
    match step:
        case Project(x, _, weights, out):
            yield "a number of results", len(weights) == len(out)
            for weight, y in zip(weights, out, strict=False):
                yield "a matrix", _fits(weight, x, y)
        case Gated(x, _, gate, up, y, _):
            yield "a matrix", _fits(gate, x, y) and _fits(up, x, y)
        case Add(x, h, weight):
            yield "a matrix", _fits(weight, h, x)
        case AddNormed(x, h, _):
            yield "a value", x.columns == h.columns
        case Attend(q, k, v, out, heads, rope, _, group, layer, scale):
            queries, keys = heads.queries * heads.dim, heads.keys * heads.dim
            yield "a value", (q.columns, out.columns, k.columns, v.columns) == (queries, queries, keys, keys)
            yield "a shape of heads", heads.queries % heads.keys == 0 and rope.dim == heads.dim
            yield "a group", 0 <= group < len(model.kv)
            kept = model.kv[group]
            yield "a scale", scale is None or 0 < scale < math.inf
            yield "a cache", (heads.keys, heads.dim) == (kept.heads, kept.dim) and 0 <= layer < kept.layers
        case Route(x, _, router, h, weights):
            yield "a router", router.columns == x.columns == h.columns and 1 <= weights.columns <= router.rows
        case Expert(h, gate, up, down, parts):
            inner = gate.rows == up.rows == down.columns and gate.columns == up.columns == h.columns == down.rows
            yield "a matrix", inner and parts.columns % down.rows == 0
        case Mix(x, weights, parts):
            yield "a value", parts.columns == weights.columns * x.columns
        case Score(x, _, weight, first):
            yield "a matrix", weight.columns == x.columns and 0 <= first <= model.vocabulary - weight.rows


def _fits(weight: Matrix, x: Value, y: Value) -> bool:
    return (weight.rows, weight.columns) == (y.columns, x.columns)
