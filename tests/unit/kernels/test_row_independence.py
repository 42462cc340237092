"""Is a row's result the same to the bit whatever is computed beside it? (What replay after a crash rests on.)"""

from __future__ import annotations

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Floats, Heads, Span
from nvstreamd.kernels.kernel_set import KernelSet
from unit.kernels.rig import activations, angles, every_kernel, product, random_weight

KERNELS = every_kernel()
SHAPES = [(2048, 576), (576, 1536), (1000, 4096), (96, 64), (13, 512)]
TYPES = {"F16": ggml.F16, "Q4_0": ggml.Q4_0, "Q8_0": ggml.Q8_0, "Q6_K": ggml.Q6_K}
ROWS = 40


def padded(ops: KernelSet, x: Floats) -> Floats:
    """x, filled up to whole tiles."""
    return np.concatenate((x, np.zeros((-x.shape[0] % ops.row_tile, x.shape[1]), np.float32)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_products_of_rows_do_not_see_each_other(kernel: str, kind: str, out: int, width: int) -> None:
    if width % TYPES[kind].block_length:
        width = width // 256 * 256 or 256
    weight = random_weight(TYPES[kind], out, width)
    x = activations(ROWS, width)
    with KERNELS[kernel](1) as ops:
        together = product(ops, x, weight)
        order = np.random.default_rng(3).permutation(ROWS)
        assert np.array_equal(product(ops, x[order], weight), together[order])
        for count in (1, 2, 3, 5, 33):
            assert np.array_equal(product(ops, padded(ops, x[:count]), weight)[:count], together[:count]), count
    for threads in (2, 3):
        with KERNELS[kernel](threads) as ops:
            assert np.array_equal(product(ops, x, weight), together), threads


HEADS = [Heads(9, 3, 64, True, 1e-5), Heads(32, 8, 128, False, 1e-6), Heads(4, 4, 16, True, 1e-5),
         Heads(6, 1, 80, False, 1e-5), Heads(40, 2, 8, False, 1e-5)]
PAGES = 11


def caches(heads: Heads) -> Cache:
    """Two layers of pages full of what others left there."""
    rng = np.random.default_rng(5)
    keys = rng.standard_normal((2, PAGES, heads.keys, heads.dim, PAGE_TOKENS)).astype(np.float16)
    values = rng.standard_normal(keys.size + 64).astype(np.float16)[: keys.size]
    return Cache(keys, values.reshape(2, PAGES, heads.keys, PAGE_TOKENS, heads.dim))


def attended(ops: KernelSet, heads: Heads, cache: Cache, tokens: dict[int, int], pages: dict[int, list[int]],
             cuts: list[tuple[int, int, int]]) -> dict[int, Floats]:
    """Runs `cuts` (sequence, begin, count) as one batch; what each sequence's rows gave. Rows depend on the token."""
    spans, where, first = [], [], 0
    for sequence, begin, count in cuts:
        spans.append(Span(first, count, begin, pages[sequence]))
        where += [(sequence, begin + i) for i in range(count)]
        first += count
    padding = -first % ops.row_tile
    width = (heads.queries + 2 * heads.keys) * heads.dim
    drawn = {sequence: activations(tokens[sequence], width, 100 + sequence) for sequence, _, _ in cuts}
    x = np.stack([drawn[s][t] for s, t in where] + [np.zeros(width, np.float32)] * padding)
    cos, sin = angles(heads, [t for _, t in where] + [0] * padding)
    cuts_at = (heads.queries * heads.dim, (heads.queries + heads.keys) * heads.dim)
    qkv = [np.ascontiguousarray(part) for part in np.split(x, cuts_at, axis=1)]
    out = ops.attention(heads, cache, Batch(spans, cos, sin)).attend(1, qkv, ())
    return {sequence: np.stack([out[i] for i, (s, _) in enumerate(where) if s == sequence])
            for sequence, _, _ in cuts}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads.queries}x{heads.keys}x{heads.dim}")
def test_attention_depends_on_a_rows_own_past_alone(kernel: str, heads: Heads) -> None:
    tokens, pages = {0: 77, 1: 50}, {0: [2, 0, 1], 1: [5, 4]}
    with KERNELS[kernel](2) as ops:
        whole = attended(ops, heads, caches(heads), tokens, pages, [(0, 0, 77)])[0]
        cache = caches(heads)
        pieces = [attended(ops, heads, cache, tokens, {0: [9, 7, 3], 1: [5, 4]}, cuts)[0] for cuts in (
            [(0, 0, 31)], [(1, 0, 20), (0, 31, 2)], [(0, 33, 1), (1, 20, 30)], [(0, 34, 43)])]
        assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gates_and_norms_do_not_see_other_rows(kernel: str) -> None:
    gate, up = random_weight(ggml.Q8_0, 200, 512), random_weight(ggml.F16, 200, 512, 1)
    x, norm = activations(ROWS, 512), activations(1, 512, 9)[0]
    with KERNELS[kernel](2) as ops:
        gated = ops.gated(x, norm, 1e-5, gate, up)
        projected = ops.project(x, norm, 1e-5, (gate, up))
        normed = ops.rms_norm(x, norm, 1e-5)
        for row in (0, 13, 39):
            own = padded(ops, x[row : row + 1])
            assert np.array_equal(ops.gated(own, norm, 1e-5, gate, up)[0], gated[row])
            assert np.array_equal(ops.rms_norm(own, norm, 1e-5)[0], normed[row])
            for found, expected in zip(ops.project(own, norm, 1e-5, (gate, up)), projected, strict=True):
                assert np.array_equal(found[0], expected[row])
