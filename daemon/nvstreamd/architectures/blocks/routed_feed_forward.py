"""What does the feed-forward half of a layer compute, when a router sends each row to a few of many experts?"""

from __future__ import annotations

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Values
from nvstreamd.program import Expert, Mix, Route, Step


def routed_feed_forward(hyper: Hyper, values: Values, tensors: Tensors) -> tuple[Step, ...]:
    """h = norm(x), which the router scores; x += the sum of weight * (silu(h times gate) * (h times up)) times down.

    The sum is over the experts that serve a row, each with its own gate, up and down.
    """
    x, used, width = values.hidden, hyper.experts_used, hyper.width
    h, weights, parts = values.new(width), values.new(used), values.new(used * width)
    return (
        Route(x, tensors.norm("ffn_norm", width, hyper.epsilon), tensors.matrix("ffn_gate_inp", hyper.experts, width),
              h, weights),
        Expert(h, tensors.experts("ffn_gate_exps", hyper.experts, hyper.feed_forward, width),
               tensors.experts("ffn_up_exps", hyper.experts, hyper.feed_forward, width),
               tensors.experts("ffn_down_exps", hyper.experts, width, hyper.feed_forward), parts),
        Mix(x, weights, parts),
    )
