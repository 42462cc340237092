"""What does a layer of a dense Qwen 3 model compute? Each head of q and k is normed before it is turned."""

from __future__ import annotations

from nvstreamd.architectures.blocks.gated_feed_forward import gated_feed_forward
from nvstreamd.architectures.blocks.grouped_query import grouped_query
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Step


def qwen3(hyper: Hyper, values: Values, tensors: Tensors, layer: int) -> tuple[Step, ...]:
    """x += attention(norm(x)), with head norms; x += feed_forward(norm(x))."""
    return (
        *grouped_query(hyper, values, tensors, Kept(0, layer), hyper.rope(interleaved=False), head_norms=True),
        *gated_feed_forward(hyper, values, tensors),
    )
