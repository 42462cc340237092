"""What does a layer of a Qwen 2 or 2.5 model compute? q, k and v have biases; rotary pairs lie half a head apart."""

from __future__ import annotations

from nvstreamd.architectures.blocks.gated_feed_forward import gated_feed_forward
from nvstreamd.architectures.blocks.grouped_query import grouped_query
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Bias, Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Step


def qwen2(hyper: Hyper, values: Values, tensors: Tensors, layer: int) -> tuple[Step, ...]:
    """x += attention(norm(x)); x += feed_forward(norm(x))."""
    return (
        *grouped_query(hyper, values, tensors, Kept(0, layer), hyper.rope(interleaved=False), bias=Bias.REQUIRED),
        *gated_feed_forward(hyper, values, tensors),
    )
