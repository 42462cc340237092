"""Is a row's result the same to the bit whatever is computed beside it? (What replay after a crash rests on.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.rows import PAGE_TOKENS, Stretch
from nvstreamd.program import Heads
from unit.kernels import rig
from unit.kernels.rig import Attention, activations, every_device, product, random_weight

DEVICES = every_device()
SHAPES = [(2048, 576), (576, 1536), (1000, 4096), (96, 64), (13, 512)]
TYPES = {"F16": ggml.F16, "Q4_0": ggml.Q4_0, "Q8_0": ggml.Q8_0, "Q6_K": ggml.Q6_K}
ROWS = 40
# The oracle and the kernels for any CPU take seconds for large matrices of floats.
SLOW_DEVICES, LARGE = ("torch", "portable", "card"), 800_000
SMALL = 100_000


def products() -> Iterator[Any]:
    """Every shape of every type on every device; the long ones are `thorough`."""
    for out, width in SHAPES:
        for kind in TYPES:
            for device in DEVICES:
                is_long = device in SLOW_DEVICES and out * width > (LARGE if device != "card" else SMALL)
                yield pytest.param(device, kind, out, width, marks=[pytest.mark.thorough] if is_long else [])


@pytest.mark.parametrize(("device", "kind", "out", "width"), list(products()))
def test_products_of_rows_do_not_see_each_other(device: str, kind: str, out: int, width: int) -> None:
    if width % TYPES[kind].block_length:
        width = width // 256 * 256 or 256
    weight = random_weight(TYPES[kind], out, width)
    x = activations(ROWS, width)
    with DEVICES[device](1) as opened:
        together = product(opened, x, weight)
        order = np.random.default_rng(3).permutation(ROWS)
        assert np.array_equal(product(opened, x[order], weight), together[order])
        for count in (1, 2, 3, 5, 33):
            assert np.array_equal(product(opened, x[:count], weight), together[:count]), count
    for threads in (2, 3):
        with DEVICES[device](threads) as opened:
            assert np.array_equal(product(opened, x, weight), together), threads


HEADS = [(Heads(9, 3, 64), True), (Heads(32, 8, 128), False), (Heads(4, 4, 16), True), (Heads(6, 1, 80), False),
         (Heads(40, 2, 8), False)]
PAGES = 11


def attentions() -> Iterator[Any]:
    """Every kind of heads on every device; wide ones are `thorough` on the oracle."""
    for heads, interleaved in HEADS:
        for device in DEVICES:
            is_long = device in ("torch", "card") and heads.queries * heads.dim > 300
            yield pytest.param(device, heads, interleaved, marks=[pytest.mark.thorough] if is_long else [])


def attended(device: Device, layer: Attention, ready: object, tokens: dict[int, int], pages: dict[int, list[int]],
             cuts: list[tuple[int, int, int]]) -> dict[int, Floats]:
    """Runs `cuts` (sequence, begin, count) as one pass; what each sequence's rows gave. Rows depend on the token."""
    stretches, where, first = [], [], 0
    for sequence, begin, count in cuts:
        stretches.append(Stretch(first, count, begin, [pages[sequence]]))
        where += [(sequence, begin + i) for i in range(count)]
        first += count
    drawn = {sequence: activations(tokens[sequence], 64, 100 + sequence) for sequence, _, _ in cuts}
    out = layer.attend(device, ready, np.stack([drawn[s][t] for s, t in where]), stretches)
    return {sequence: np.stack([out[i] for i, (s, _) in enumerate(where) if s == sequence])
            for sequence, _, _ in cuts}


@pytest.mark.parametrize(("device", "heads", "interleaved"), list(attentions()), ids=str)
def test_attention_depends_on_a_rows_own_past_alone(device: str, heads: Heads, interleaved: bool) -> None:
    tokens, pages = {0: 77, 1: 50}, {0: [2, 0, 1], 1: [5, 4]}
    widths = [heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim]
    layer = Attention.of(heads, rig.rope_of(heads, interleaved=interleaved),
                         [random_weight(ggml.Q8_0, width, 64, i) for i, width in enumerate(widths)], layer=1)
    with DEVICES[device](2) as opened:
        whole = attended(opened, layer, layer.open(opened, PAGES), tokens, pages, [(0, 0, 77)])[0]
        ready = layer.open(opened, PAGES)
        # Pages full of what others left there.
        layer.attend(opened, ready, activations(PAGES * PAGE_TOKENS, 64, 5),
                     [Stretch(page * PAGE_TOKENS, PAGE_TOKENS, 0, [[page]]) for page in range(PAGES)])
        pieces = [attended(opened, layer, ready, tokens, {0: [9, 7, 3], 1: [5, 4]}, cuts)[0] for cuts in (
            [(0, 0, 31)], [(1, 0, 20), (0, 31, 2)], [(0, 33, 1), (1, 20, 30)], [(0, 34, 43)])]
        assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("device", DEVICES)
def test_gates_and_norms_do_not_see_other_rows(device: str) -> None:
    gate, up = random_weight(ggml.Q8_0, 200, 512), random_weight(ggml.F16, 200, 512, 1)
    x, norm = activations(ROWS, 512), activations(1, 512, 9)[0]
    with DEVICES[device](2) as opened:
        gated = rig.gated(opened, x, norm, 1e-5, gate, up)
        projected = rig.project(opened, x, norm, 1e-5, (gate, up))
        for row in (0, 13, 39):
            own = x[row : row + 1]
            assert np.array_equal(rig.gated(opened, own, norm, 1e-5, gate, up)[0], gated[row])
            for found, expected in zip(rig.project(opened, own, norm, 1e-5, (gate, up)), projected, strict=True):
                assert np.array_equal(found[0], expected[row])
