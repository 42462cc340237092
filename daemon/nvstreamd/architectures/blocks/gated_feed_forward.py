"""What does the feed-forward half of a layer compute, when one half of it is the gate of the other (SwiGLU, GeGLU)?"""

from __future__ import annotations

from nvstreamd.architectures.blocks.residual import residual
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Values
from nvstreamd.program import Activation, Gated, Step


def gated_feed_forward(hyper: Hyper, values: Values, tensors: Tensors, *, activation: Activation = Activation.SILU,
                       after: str | None = None) -> tuple[Step, ...]:
    """x += (activation(norm(x) times gate) * (norm(x) times up)) times down; `after` norms what is added."""
    x, h = values.hidden, values.new(hyper.feed_forward)
    return (
        Gated(x, tensors.norm("ffn_norm", hyper.width, hyper.epsilon),
              tensors.matrix("ffn_gate", hyper.feed_forward, hyper.width),
              tensors.matrix("ffn_up", hyper.feed_forward, hyper.width), h, activation),
        *residual(hyper, values, tensors, h, tensors.matrix("ffn_down", hyper.width, hyper.feed_forward), after),
    )
