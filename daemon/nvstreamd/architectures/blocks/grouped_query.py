"""What does the attention half of a layer compute, when query heads share keys and values (Ainslie et al., 2023)?"""

from __future__ import annotations

from nvstreamd.architectures.blocks.residual import residual
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.tensors import Bias, Tensors
from nvstreamd.architectures.values import Kept, Values
from nvstreamd.program import Attend, Project, Rope, Step


def grouped_query(hyper: Hyper, values: Values, tensors: Tensors, kept: Kept, rope: Rope, *,
                  bias: Bias = Bias.OPTIONAL, head_norms: bool = False, after: str | None = None,
                  scale: float | None = None) -> tuple[Step, ...]:
    """x += attention(q, k, v) times output; q, k, v = norm(x) times theirs.

    `bias` is what q, k and v have beside their matrices. With `head_norms` each head of q and k is normed first. With
    `after` what is added is normed by that. Scores are multiplied by `scale`, 1 / sqrt(dim) where none is given.
    """
    heads, epsilon, x = hyper.heads, hyper.epsilon, values.hidden
    queries, keys = heads.queries * heads.dim, heads.keys * heads.dim
    q, k, v, mixed = (values.new(columns) for columns in (queries, keys, keys, queries))
    norms = (tensors.norm("attn_q_norm", heads.dim, epsilon),
             tensors.norm("attn_k_norm", heads.dim, epsilon)) if head_norms else None
    return (
        Project(x, tensors.norm("attn_norm", hyper.width, epsilon), (
            tensors.matrix("attn_q", queries, hyper.width, bias),
            tensors.matrix("attn_k", keys, hyper.width, bias),
            tensors.matrix("attn_v", keys, hyper.width, bias)), (q, k, v)),
        Attend(q, k, v, mixed, heads, rope, norms, kept.group, kept.layer, scale),
        *residual(hyper, values, tensors, mixed, tensors.matrix("attn_output", hyper.width, queries, Bias.OPTIONAL),
                  after),
    )
