"""How does a step of a program look to the C++ kernels? Names become offsets, values numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_structs import MOST_MATRICES, Base, CpuActivation, CpuMatrix, CpuStep, CpuTensor, Op
from nvstreamd.kernels.device import Tensors, scale_of
from nvstreamd.program import (
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

NOTHING = CpuTensor(Base.NONE, 0, 0)


@dataclass(frozen=True, slots=True)
class Names:
    """The meaning of a stage's names: tensors of its own weights, then the model's constants."""

    own: Tensors
    constants: Tensors

    def tensor(self, name: str | None) -> CpuTensor:
        """Where a tensor lies. Raises KernelError when there is none of that name."""
        if name is None:
            return NOTHING
        for base, tensors in ((Base.WEIGHTS, self.own), (Base.CONSTANTS, self.constants)):
            if name in tensors:
                return CpuTensor(base, tensors[name].offset, tensors[name].type.id)
        raise KernelError(f"a program wants {name[:200]}, which its weights do not have", "report this")

    def matrix(self, matrix: Matrix, out: int) -> CpuMatrix:
        """A matrix whose products go to value `out`."""
        return CpuMatrix(self.tensor(matrix.name), self.tensor(matrix.bias), matrix.rows, out)


def translate(step: Step, own: Tensors, constants: Tensors, ropes: Mapping[Rope, int],
              groups: Sequence[KvGroup]) -> CpuStep:
    """The struct of a step of a model with these groups. Raises KernelError."""
    names = Names(own, constants)
    match step:
        case Project(x, norm, weights, out):
            matrices = [names.matrix(weight, y.id) for weight, y in zip(weights, out, strict=True)]
            return _linear(names, Op.PROJECT, x, norm, matrices)
        case Gated(x, norm, gate, up, out, activation):
            made = _linear(names, Op.GATED, x, norm, [names.matrix(gate, out.id), names.matrix(up, out.id)])
            made.activation = CpuActivation[activation.name]
            return made
        case Add(x, h, weight):
            return _linear(names, Op.ADD, h, None, [names.matrix(weight, x.id)])
        case AddNormed(x, h, norm):
            return CpuStep(op=Op.ADD_NORMED, x=h.id, columns=h.columns, norm=names.tensor(norm.weight),
                           epsilon=norm.epsilon, out=x.id)
        case Score(x, norm, weight, first):
            made = _linear(names, Op.SCORE, x, norm, [names.matrix(weight, 0)])
            made.first = first
            return made
        case Route(x, norm, router, h, weights):
            made = _linear(names, Op.ROUTE, x, norm, [names.matrix(router, 0)])
            made.out, made.weights, made.used = h.id, weights.id, weights.columns
            return made
        case Expert(h, gate, up, down, parts, activation):
            made = _linear(names, Op.EXPERT, h, None, [names.matrix(each, parts.id) for each in (gate, up, down)])
            made.out, made.used, made.activation = parts.id, parts.columns // down.rows, CpuActivation[activation.name]
            return made
        case Mix(x, weights, parts):
            return CpuStep(op=Op.MIX, x=x.id, columns=x.columns, weights=weights.id, out=parts.id,
                           used=weights.columns)
        case Attend():
            return _attend(names, step, ropes, groups[step.group].window or 0)


def _linear(names: Names, op: Op, x: Value, norm: Norm | None, matrices: Sequence[CpuMatrix]) -> CpuStep:
    if len(matrices) > MOST_MATRICES:
        raise KernelError(f"{len(matrices)} products of one step, {MOST_MATRICES} can be", "report this")
    made = CpuStep(op=op, x=x.id, columns=x.columns, norm=names.tensor(None if norm is None else norm.weight),
                   epsilon=0.0 if norm is None else norm.epsilon, matrices=len(matrices))
    for number, matrix in enumerate(matrices):
        made.matrix[number] = matrix
    return made


def _attend(names: Names, step: Attend, ropes: Mapping[Rope, int], window: int) -> CpuStep:
    q_norm, k_norm = (None, None) if step.norms is None else (norm.weight for norm in step.norms)
    return CpuStep(
        op=Op.ATTEND, q=step.q.id, k=step.k.id, v=step.v.id, out=step.out.id,
        q_norm=names.tensor(q_norm), k_norm=names.tensor(k_norm), epsilon=step.norms[0].epsilon if step.norms else 0.0,
        heads=step.heads.queries, kv_heads=step.heads.keys, dim=step.heads.dim,
        interleaved=int(step.rope.interleaved), group=step.group, layer=step.layer, rope=ropes[step.rope],
        window=window, scale=scale_of(step),
    )
