"""What does a layer of a Qwen 3 model with experts compute? Qwen 3's attention, then the experts of each row.

Qwen3-30B-A3B, Qwen3-Coder, Qwen3-235B-A22B (Qwen Team, "Qwen3 Technical Report", 2025).
"""

from __future__ import annotations

from nvstreamd.architectures.blocks.grouped_query import grouped_query
from nvstreamd.architectures.blocks.routed_feed_forward import routed_feed_forward
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Step


def qwen3moe(hyper: Hyper, values: Values, tensors: Tensors, layer: int) -> tuple[Step, ...]:
    """x += attention(norm(x)), with head norms; x += experts(norm(x))."""
    return (
        *grouped_query(hyper, values, tensors, Kept(0, layer), hyper.rope(interleaved=False), head_norms=True),
        *routed_feed_forward(hyper, values, tensors),
    )
