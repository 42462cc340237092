"""What does a layer do to the hidden state? The arithmetic that the dense decoder families share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.ops import Attention, Floats, LayerWeights, Ops

Doubles = npt.NDArray[np.float64]


def inverse_frequencies(hyper: Hyper, factors: Floats | None) -> Doubles:
    """Angle per position of each rotary pair, [rope_dim / 2] float64.

    `factors` is rope_freqs.weight (Llama 3 scaling): each frequency is divided by its factor.
    """
    exponents = np.arange(0, hyper.rope_dim, 2, dtype=np.float64) / hyper.rope_dim
    frequencies: Doubles = hyper.rope_scale * hyper.rope_base**-exponents
    return frequencies if factors is None else frequencies / factors.astype(np.float64)


def rope_angles(frequencies: Doubles, positions: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """cos and sin, [rows, rope_dim / 2] float32, of positions [rows] int64; computed in float64."""
    angles = positions[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def attention_block(hyper: Hyper, ops: Ops, weights: LayerWeights, x: Floats, attention: Attention,
                    layer: int) -> None:
    """The attention half of a layer, added to x [rows, width]."""
    matrices = [weights.matrix(name) for name in ("attn_q", "attn_k", "attn_v")]
    qkv = ops.project(x, weights.vector("attn_norm.weight"), hyper.epsilon, matrices)
    names = ("attn_q_norm.weight", "attn_k_norm.weight") if hyper.family.qk_norm else ()
    mixed = attention.attend(layer, qkv, [weights.vector(name) for name in names])
    ops.add_linear(x, mixed, weights.matrix("attn_output"))


def feed_forward_block(hyper: Hyper, ops: Ops, weights: LayerWeights, x: Floats) -> None:
    """The gated feed-forward half of a layer, added to x [rows, width]."""
    norm, gate, up = weights.vector("ffn_norm.weight"), weights.matrix("ffn_gate"), weights.matrix("ffn_up")
    ops.add_linear(x, ops.gated(x, norm, hyper.epsilon, gate, up), weights.matrix("ffn_down"))


def decoder_layer(hyper: Hyper, ops: Ops, weights: LayerWeights, x: Floats, attention: Attention,
                  layer: int) -> None:
    """One layer in place: x [rows, width] float32."""
    attention_block(hyper, ops, weights, x, attention, layer)
    feed_forward_block(hyper, ops, weights, x)
