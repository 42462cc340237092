"""How does what half a layer found come to the hidden state? Multiplied and added, in some families normed first."""

from __future__ import annotations

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Values
from nvstreamd.program import Add, AddNormed, Matrix, Project, Step, Value


def residual(hyper: Hyper, values: Values, tensors: Tensors, h: Value, weight: Matrix, after: str | None
             ) -> tuple[Step, ...]:
    """x += h times weight; x += norm(h times weight) where `after` names a norm."""
    if after is None:
        return (Add(values.hidden, h, weight),)
    y, norm = values.new(hyper.width), tensors.norm(after, hyper.width, hyper.epsilon)
    return Project(h, None, (weight,), (y,)), AddNormed(values.hidden, y, norm)
