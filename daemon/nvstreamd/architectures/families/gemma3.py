"""What does a layer of a Gemma 3 model compute? Five layers see a window, the sixth sees everything.

Google, "Gemma 3 Technical Report" (2025). Halves are normed before and after, heads of q and k too; the gate is GELU's.
A converted file's norms hold 1 + weight already. Embeddings are multiplied by the root of the width.
"""

from __future__ import annotations

from math import sqrt

from nvstreamd.architectures.blocks.gated_feed_forward import gated_feed_forward
from nvstreamd.architectures.blocks.grouped_query import grouped_query
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Activation, KvGroup, Step

PERIOD = 6
ALL, WINDOW = 0, 1
# The 27B's scores are scaled by the width of a query head as the width divides, not by the heads' own.
LAYERS_OF_27B = 62


def gemma3(hyper: Hyper, values: Values, tensors: Tensors, layer: int) -> tuple[Step, ...]:
    """x += norm(attention(norm(x))); x += norm(feed_forward(norm(x)))."""
    turn, place = divmod(layer, PERIOD)
    if sees_all(hyper, layer):
        kept, rope = Kept(ALL, layer if hyper.window is None else turn), hyper.rope(interleaved=False)
    else:
        kept, rope = Kept(WINDOW, turn * (PERIOD - 1) + place), hyper.window_rope(interleaved=False)
    return (
        *grouped_query(hyper, values, tensors, kept, rope, head_norms=True, after="post_attention_norm",
                       scale=sqrt(hyper.heads.queries / hyper.width) if hyper.layers == LAYERS_OF_27B else None),
        *gated_feed_forward(hyper, values, tensors, activation=Activation.GELU, after="post_ffw_norm"),
    )


def sees_all(hyper: Hyper, layer: int) -> bool:
    """True for every sixth layer, and for all of a file without a window."""
    return hyper.window is None or layer % PERIOD == PERIOD - 1


def gemma3_kv(hyper: Hyper) -> tuple[KvGroup, ...]:
    """Layers that see everything, then those that see the window."""
    whole = sum(sees_all(hyper, layer) for layer in range(hyper.layers))
    keys, dim = hyper.heads.keys, hyper.heads.dim
    window = KvGroup(hyper.layers - whole, keys, dim, hyper.window)
    return (KvGroup(whole, keys, dim), *((window,) if window.layers else ()))
