"""What does a layer of a Llama model compute? The plain decoder that the others are told against.

Rotary pairs lie interleaved: the GGUF converter permutes q and k. Mistral's dense models compute the same, with heads
that may be wider than width / heads; most of their files say "llama". The sliding window of the first Mistral releases
is not applied, as in llama.cpp.
"""

from __future__ import annotations

from nvstreamd.architectures.blocks.gated_feed_forward import gated_feed_forward
from nvstreamd.architectures.blocks.grouped_query import grouped_query
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Step


def llama(hyper: Hyper, values: Values, tensors: Tensors, layer: int) -> tuple[Step, ...]:
    """x += attention(norm(x)); x += feed_forward(norm(x))."""
    return (
        *grouped_query(hyper, values, tensors, Kept(0, layer), hyper.rope(interleaved=True)),
        *gated_feed_forward(hyper, values, tensors),
    )
