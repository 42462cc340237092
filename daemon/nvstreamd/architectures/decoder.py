"""What does a layer do to the hidden state? The arithmetic that the dense decoder families share."""

from __future__ import annotations

import torch

from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.ops import Attention, LayerWeights, Ops


def inverse_frequencies(hyper: Hyper, factors: torch.Tensor | None) -> torch.Tensor:
    """Angle per position of each rotary pair, [rope_dim / 2] float64.

    `factors` is rope_freqs.weight (Llama 3 scaling): each frequency is divided by its factor.
    """
    exponents = torch.arange(0, hyper.rope_dim, 2, dtype=torch.float64) / hyper.rope_dim
    frequencies = hyper.rope_scale * hyper.rope_base**-exponents
    return frequencies if factors is None else frequencies / factors.to(torch.float64)


def rope_angles(frequencies: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [rows, rope_dim / 2] float32, of positions [rows] int64; computed in float64."""
    angles = positions.to(torch.float64)[:, None] * frequencies
    return angles.cos().to(torch.float32), angles.sin().to(torch.float32)


def project(ops: Ops, weights: LayerWeights, name: str, x: torch.Tensor) -> torch.Tensor:
    """x through `name`.weight, plus `name`.bias where the layer has one."""
    y = ops.linear(x, weights.matrix(f"{name}.weight"))
    return y.add_(weights.vector(f"{name}.bias")) if weights.has(f"{name}.bias") else y


def attention_block(hyper: Hyper, ops: Ops, weights: LayerWeights, x: torch.Tensor,
                    angles: tuple[torch.Tensor, torch.Tensor], attention: Attention, layer: int) -> torch.Tensor:
    """The attention half of a layer: x [rows, width] -> [rows, width], residual not yet added."""
    rows = x.shape[0]
    h = ops.rms_norm(x, weights.vector("attn_norm.weight"), hyper.epsilon)
    q = project(ops, weights, "attn_q", h).view(rows, hyper.heads, hyper.head_dim)
    k = project(ops, weights, "attn_k", h).view(rows, hyper.kv_heads, hyper.head_dim)
    v = project(ops, weights, "attn_v", h).view(rows, hyper.kv_heads, hyper.head_dim)
    if hyper.family.qk_norm:
        q = ops.rms_norm(q, weights.vector("attn_q_norm.weight"), hyper.epsilon)
        k = ops.rms_norm(k, weights.vector("attn_k_norm.weight"), hyper.epsilon)
    q = ops.rope(q, *angles, hyper.family.interleaved_rope)
    k = ops.rope(k, *angles, hyper.family.interleaved_rope)
    return project(ops, weights, "attn_output", attention.attend(layer, q, k, v))


def feed_forward_block(hyper: Hyper, ops: Ops, weights: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    """The gated feed-forward half of a layer, residual not yet added."""
    h = ops.rms_norm(x, weights.vector("ffn_norm.weight"), hyper.epsilon)
    gate = ops.linear(h, weights.matrix("ffn_gate.weight"))
    up = ops.linear(h, weights.matrix("ffn_up.weight"))
    return ops.linear(ops.swiglu(gate, up), weights.matrix("ffn_down.weight"))


def decoder_layer(hyper: Hyper, ops: Ops, weights: LayerWeights, x: torch.Tensor,
                  angles: tuple[torch.Tensor, torch.Tensor], attention: Attention, layer: int) -> torch.Tensor:
    """One layer in place: x [rows, width] float32, returned."""
    x += attention_block(hyper, ops, weights, x, angles, attention, layer)
    x += feed_forward_block(hyper, ops, weights, x)
    return x
