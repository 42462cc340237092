"""Do the C++ kernels compute what the reference computes, as far as 8-bit activations allow?

What they round is known exactly: activations, in blocks of 32. So the products are held against the same rounding done
in float64, to float32's precision, and the rounding itself against its bound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from nvstreamd import ggml
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Floats, Heads, Span
from nvstreamd.kernels.cpu_library import InstructionSet
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.weight import Weight
from unit.kernels.rig import INSTRUCTION_SETS, activations, angles, cpu_ops, product, random_weight, torch_ops

Doubles = npt.NDArray[np.float64]
FLOATS = ("F32", "F16", "BF16")
by_name = pytest.mark.parametrize("kernel", INSTRUCTION_SETS, ids=lambda found: found.name)


def rounded(x: Floats, kind: GgmlType) -> Doubles:
    """What the kernels multiply: x in blocks of 32 with 255 levels; x itself for floating-point weights. float64."""
    if kind.name in FLOATS:
        return x.astype(np.float64)
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.where(most > 1e-30, np.float32(127) / np.maximum(most, np.float32(1e-30)), np.float32(0))
    levels = np.rint(blocks * inverse)
    return (levels.astype(np.float64) * (most / np.float32(127))).reshape(x.shape)


def expected(x: Floats, weight: Weight) -> Doubles:
    """The product in float64."""
    weights = dequantise(weight.type, weight.data, weight.columns).astype(np.float64)
    y: Doubles = rounded(x, weight.type) @ weights.T
    return y if weight.bias is None else y + weight.bias


def distance(found: Floats, wanted: Doubles) -> float:
    """The largest distance of a row, as a part of its length."""
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


@by_name
@pytest.mark.parametrize("kind", ggml.SUPPORTED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_every_type_is_multiplied_right(kernel: InstructionSet, kind: GgmlType, rows: int) -> None:
    """141 rows of weights: whole groups of lanes and some left over."""
    weight, x = random_weight(kind, 141, 768), activations(rows, 768)
    with cpu_ops(kernel, 2) as ops:
        assert distance(product(ops, x, weight), expected(x, weight)) < 2e-6


@pytest.mark.parametrize("kind", ggml.SUPPORTED, ids=lambda kind: kind.name)
def test_instruction_sets_agree_to_the_bit(kind: GgmlType) -> None:
    weight, x = random_weight(kind, 77, 1280), activations(9, 1280)
    found = []
    for kernel in INSTRUCTION_SETS:
        with cpu_ops(kernel) as ops:
            found.append(product(ops, x, weight))
    for other in found[1:]:
        assert np.array_equal(other, found[0])


@by_name
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 100])
def test_floats_need_no_whole_vectors(kernel: InstructionSet, columns: int) -> None:
    for kind in (ggml.F32, ggml.F16, ggml.BF16):
        weight, x = random_weight(kind, 5, columns), activations(4, columns)
        with cpu_ops(kernel) as ops:
            np.testing.assert_allclose(product(ops, x, weight), expected(x, weight), rtol=1e-5, atol=1e-5)


@by_name
def test_activations_at_the_edges(kernel: InstructionSet) -> None:
    """Zeros, one outlier, the largest magnitudes of both signs, and numbers too small to scale."""
    x = activations(5, 256)
    x[0] = 0
    x[1, 7] = 1e4
    x[2] = np.where(x[2] > 0, 3.0, -3.0)
    x[3] = 1e-35
    with cpu_ops(kernel) as ops:
        for kind in (ggml.Q8_0, ggml.Q4_0, ggml.Q6_K, ggml.IQ4_NL, ggml.MXFP4):
            weight = random_weight(kind, 32, 256)
            found, wanted = product(ops, x, weight), expected(x, weight)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
            assert not found[0].any()


@by_name
def test_extreme_weights_do_not_overflow(kernel: InstructionSet) -> None:
    """All bits set, and none, against activations that are all at the largest level: sums at their largest."""
    for kind in ggml.SUPPORTED:
        if kind.name in FLOATS:
            continue
        for bits in (0, 0xFF):
            weight = random_weight(kind, 16, 256)
            blocks = weight.data.reshape(-1, kind.block_bytes)
            scales = {"MXFP4": (0, 1), "Q2_K": (80, 84), "Q3_K": (108, 110), "Q6_K": (208, 210)}
            begin, end = scales.get(kind.name, (0, 4 if kind.name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 2))
            kept = blocks[:, begin:end].copy()
            blocks[:] = bits
            blocks[:, begin:end] = kept
            x = np.ones((3, 256), np.float32)
            x[1] = -1
            x[2, ::2] = -1
            with cpu_ops(kernel) as ops:
                np.testing.assert_allclose(product(ops, x, weight), expected(x, weight), rtol=1e-5, atol=1e-3)


@by_name
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(kernel: InstructionSet, value: float) -> None:
    """The runner finds damaged weights by their results."""
    x = activations(3, 256)
    x[1, 77] = value
    half = np.array([value], np.float16).view(np.uint8)
    with cpu_ops(kernel) as ops:
        for kind in (ggml.F16, ggml.Q8_0, ggml.Q4_K):
            weight = random_weight(kind, 20, 256)
            found = product(ops, x, weight)
            assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()
            weight.data[kind.row_bytes(256) * 5 :][:2] = half
            found = product(ops, x[:1], weight)
            assert np.flatnonzero(~np.isfinite(found[0])).tolist() == [5]
            assert not ops.finite(found) and ops.finite(np.ascontiguousarray(found[:, :5]))


@by_name
def test_fused_operations_are_their_parts(kernel: InstructionSet) -> None:
    x, norm = activations(6, 256), activations(1, 256, 8)[0]
    gate = replace(random_weight(ggml.Q4_0, 90, 256), bias=activations(1, 90, 4)[0])
    up = random_weight(ggml.F16, 90, 256, 3)
    with cpu_ops(kernel, 2) as ops, torch_ops() as reference:
        normed = ops.rms_norm(x, norm, 1e-5)
        np.testing.assert_allclose(normed, reference.rms_norm(x, norm, 1e-5), rtol=1e-5, atol=1e-6)
        first, second = ops.project(x, norm, 1e-5, (gate, up))
        assert np.array_equal(first, product(ops, normed, gate)) and np.array_equal(second, product(ops, normed, up))
        assert distance(first, expected(normed, gate)) < 2e-6
        wanted = first / (1 + np.exp(-first)) * second
        np.testing.assert_allclose(ops.gated(x, norm, 1e-5, gate, up), wanted, rtol=1e-5, atol=1e-7)
        total = activations(6, 90, 11)
        summed = total + first
        ops.add_linear(total, normed, gate)
        assert np.array_equal(total, summed)
        assert distance(ops.project(x, norm, 1e-5, (up,))[0], reference.project(
            np.concatenate((x, x[:2])), norm, 1e-5, (up,))[0][:6]) < 2e-6


@by_name
def test_a_piece_of_a_wider_result(kernel: InstructionSet) -> None:
    """Rows of the head are written into their columns of the logits, and nowhere else."""
    weight, x = random_weight(ggml.Q8_0, 50, 64), activations(5, 64)
    logits = np.zeros((5, 200), np.float32)
    with cpu_ops(kernel, 2) as ops:
        ops.linear(x, weight, logits[:, 60:110])
        assert np.array_equal(logits[:, 60:110], product(ops, x, weight))
    assert not logits[:, :60].any() and not logits[:, 110:].any()


HEADS = [Heads(6, 2, 16, True, 1e-5), Heads(6, 2, 16, False, 1e-5), Heads(4, 1, 80, True, 1e-5)]


@by_name
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads.queries}x{heads.dim}")
@pytest.mark.parametrize("normed", [False, True])
def test_attention_is_the_references(kernel: InstructionSet, heads: Heads, normed: bool) -> None:
    count, rows = 70, 72
    widths = [heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim]
    norms = [activations(1, heads.dim, 20 + i)[0] for i in range(2)] if normed else []
    batch = Batch([Span(0, count, 0, [1, 3, 0])], *angles(heads, range(rows)))
    results = []
    with cpu_ops(kernel, 2) as ops, torch_ops() as reference:
        for used in (ops, reference):
            elements = 4 * heads.keys * heads.dim * PAGE_TOKENS
            keys, values = np.zeros(elements, np.float16), np.zeros(elements + 64, np.float16)[:elements]
            cache = Cache(keys.reshape(1, 4, heads.keys, heads.dim, PAGE_TOKENS),
                          values.reshape(1, 4, heads.keys, PAGE_TOKENS, heads.dim))
            qkv = [2 * activations(rows, width, 30 + i) for i, width in enumerate(widths)]
            results.append((used.attention(heads, cache, batch).attend(0, qkv, norms)[:count], cache))
    (found, ours), (wanted, theirs) = results
    # A norm or an angle that rounds otherwise may round a key to the next float16.
    np.testing.assert_allclose(ours.keys, theirs.keys, rtol=1e-3, atol=1e-4)
    assert np.array_equal(ours.values, theirs.values)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def test_a_page_that_is_not_there_is_refused() -> None:
    """C++ would write behind the cache."""
    heads = Heads(2, 1, 16, True, 1e-5)
    cache = Cache(np.zeros((1, 4, 1, 16, PAGE_TOKENS), np.float16), np.zeros((1, 4, 1, PAGE_TOKENS, 16), np.float16))
    turned = angles(heads, [0])
    with cpu_ops(INSTRUCTION_SETS[0]) as ops:
        for page in (-1, 4):
            with pytest.raises(KernelError, match="page"):
                ops.attention(heads, cache, Batch([Span(0, 1, 0, [page])], *turned))


def test_a_table_that_ends_before_its_tokens_is_refused() -> None:
    """C++ would read the next sequence's pages."""
    heads = Heads(2, 1, 16, True, 1e-5)
    cache = Cache(np.zeros((1, 4, 1, 16, PAGE_TOKENS), np.float16), np.zeros((1, 4, 1, PAGE_TOKENS, 16), np.float16))
    turned = angles(heads, range(PAGE_TOKENS + 1))
    with cpu_ops(INSTRUCTION_SETS[0]) as ops, pytest.raises(KernelError, match="33 tokens in 1 pages"):
        ops.attention(heads, cache, Batch([Span(0, PAGE_TOKENS + 1, 0, [0])], *turned))
