"""Does every device attend to the same, is it softmax, and does each group of layers find its own pages?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.kv_memory import make_kv, page_bytes
from nvstreamd.kernels.rows import Stretch
from nvstreamd.program import Attend, Heads, KvGroup, Model, Program, Rope, Value
from unit.kernels import rig
from unit.kernels.rig import INSTRUCTION_SETS, activations, cpu, random_weight

HEADS = [(Heads(6, 2, 16), True), (Heads(6, 2, 16), False), (Heads(4, 1, 80), True)]


@pytest.mark.parametrize(("heads", "interleaved"), HEADS, ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_attention_is_the_same_on_every_device(heads: Heads, interleaved: bool, normed: bool) -> None:
    """70 tokens over pages in any order, and one more pass of a token that sees them all."""
    norms = [activations(1, heads.dim, 20 + i)[0] for i in range(2)] if normed else []
    rope = rig.rope_of(heads, interleaved=interleaved)
    widths = [heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim]
    layer = rig.Attention.of(heads, rope, [random_weight(ggml.Q8_0, width, 64, i) for i, width in enumerate(widths)],
                             norms)
    found = {}
    for name, device in rig.every_device().items():
        with device(2) as opened:
            ready = layer.open(opened, 4)
            first = layer.attend(opened, ready, 2 * activations(70, 64), [Stretch(0, 70, 0, [[1, 3, 0]])])
            last = layer.attend(opened, ready, activations(1, 64, 3), [Stretch(0, 1, 70, [[1, 3, 0]])])
            found[name] = np.concatenate((first, last))
    for name, other in found.items():
        assert np.array_equal(other, found["torch"]), name


def test_attention_is_softmax() -> None:
    """Against float64: one head, turned by next to nothing."""
    heads = Heads(1, 1, 16)
    rope = Rope(16, 10000.0, 1e-19, interleaved=True)
    x, tokens = activations(40, 16), 40
    weights = [random_weight(ggml.F32, 16, 16, seed) for seed in range(3)]
    layer = rig.Attention.of(heads, rope, weights)
    with cpu(INSTRUCTION_SETS[0]) as device:
        found = layer.attend(device, layer.open(device, 2), x, [Stretch(0, tokens, 0, [[0, 1]])])
    q, k, v = (x.astype(np.float64) @ w.data.view(np.float32).reshape(16, 16).T.astype(np.float64) for w in weights)
    scores = q @ k.T / 4
    scores[np.triu_indices(tokens, 1)] = -np.inf
    p = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(found, p / p.sum(1, keepdims=True) @ v, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("device", rig.every_device())
def test_each_group_has_pages_of_its_own(device: str) -> None:
    """Layer 1 of a second group, over other page numbers than the first group's, finds what it finds alone."""
    heads, x = Heads(6, 2, 16), activations(70, 64)
    layer = rig.Attention.of(heads, rig.rope_of(heads), [random_weight(ggml.Q8_0, width, 64, i)
                                                         for i, width in enumerate((96, 32, 32))])
    alone, other = KvGroup(1, 2, 16), KvGroup(2, 1, 4)
    with rig.every_device()[device](2) as opened:
        expected = layer.attend(opened, layer.open(opened, 4), x, [Stretch(0, 70, 0, [[1, 3, 0]])])
        project, attend = layer.steps
        assert isinstance(attend, Attend)
        second = replace(layer, steps=(project, replace(attend, group=1, layer=1)))
        opened.open(Model(Value(0, 64), 1, (other, replace(alone, layers=3)), ()), rig.Packed().span(), {}, [3, 9])
        ready = opened.prepare(Program(second.steps), layer.packed.tensors)
        assert np.array_equal(second.attend(opened, ready, x, [Stretch(0, 70, 0, [[0, 1, 2], [8, 5, 0]])]), expected)


def test_a_page_is_one_piece_for_all_layers_of_its_group() -> None:
    """One copy moves it: keys and values of every layer, and nothing of another page."""
    kv = make_kv(KvGroup(3, 2, 8), 4)
    for layer in range(3):
        kv.keys(layer)[1] = 1 + layer
        kv.values(layer)[1] = 10 + layer
    page = kv.halves.reshape(4, -1)
    assert page[1].nbytes == page_bytes(kv.group) and page[1].flags.contiguous and page[1].all()
    assert not page[[0, 2, 3]].any()
    page[2] = page[1]
    for layer in range(3):
        assert (kv.keys(layer)[2] == 1 + layer).all() and (kv.values(layer)[2] == 10 + layer).all()
