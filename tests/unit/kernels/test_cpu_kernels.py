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
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.cpu_library import InstructionSet
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.program import Norm, Program, Project, Value
from unit.kernels import rig
from unit.kernels.rig import INSTRUCTION_SETS, Weight, activations, cpu, product, random_weight

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
    with cpu(kernel, 2) as device:
        assert distance(product(device, x, weight), expected(x, weight)) < 2e-6


@pytest.mark.parametrize("kind", ggml.SUPPORTED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 9])
def test_every_device_agrees_to_the_bit(kind: GgmlType, rows: int) -> None:
    """The oracle and all instruction sets, with one row, whose kernel is another, and with several."""
    weight, x = random_weight(kind, 77, 1280), activations(rows, 1280)
    found = {}
    for name, device in rig.every_device().items():
        with device(1) as opened:
            found[name] = product(opened, x, weight)
    for name, other in found.items():
        assert np.array_equal(other, found["torch"]), name


@by_name
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 100])
def test_floats_need_no_whole_vectors(kernel: InstructionSet, columns: int) -> None:
    for kind in (ggml.F32, ggml.F16, ggml.BF16):
        weight, x = random_weight(kind, 5, columns), activations(4, columns)
        with cpu(kernel) as device:
            np.testing.assert_allclose(product(device, x, weight), expected(x, weight), rtol=1e-5, atol=1e-5)


@by_name
def test_activations_at_the_edges(kernel: InstructionSet) -> None:
    """Zeros, one outlier, the largest magnitudes of both signs, and numbers too small to scale."""
    x = activations(5, 256)
    x[0] = 0
    x[1, 7] = 1e4
    x[2] = np.where(x[2] > 0, 3.0, -3.0)
    x[3] = 1e-35
    with cpu(kernel) as device:
        for kind in (ggml.Q8_0, ggml.Q4_0, ggml.Q6_K, ggml.IQ4_NL, ggml.MXFP4):
            weight = random_weight(kind, 32, 256)
            found, wanted = product(device, x, weight), expected(x, weight)
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
            with cpu(kernel) as device:
                np.testing.assert_allclose(product(device, x, weight), expected(x, weight), rtol=1e-5, atol=1e-3)


@by_name
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(kernel: InstructionSet, value: float) -> None:
    """The runner finds damaged weights by their results."""
    x = activations(3, 256)
    x[1, 77] = value
    half = np.array([value], np.float16).view(np.uint8)
    with cpu(kernel) as device:
        for kind in (ggml.F16, ggml.Q8_0, ggml.Q4_K):
            weight = random_weight(kind, 20, 256)
            found = product(device, x, weight)
            assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()
            weight.data[kind.row_bytes(256) * 5 :][:2] = half
            found = product(device, x[:1], weight)
            assert np.flatnonzero(~np.isfinite(found[0])).tolist() == [5]
            soft = rig.scored(device, x[[0, 2]], np.ones(256, np.float32), {0: weight}, 20, [1])
            assert soft.unsound == 0
            assert rig.scored(device, x, np.ones(256, np.float32), {0: random_weight(kind, 20, 256)}, 20, [0, 2]
                              ).unsound is None


@by_name
def test_fused_operations_are_their_parts(kernel: InstructionSet) -> None:
    x, norm = activations(6, 256), activations(1, 256, 8)[0]
    gate = replace(random_weight(ggml.Q4_0, 90, 256), bias=activations(1, 90, 4)[0])
    up, square = random_weight(ggml.F16, 90, 256, 3), random_weight(ggml.Q8_0, 256, 256, 5)
    with cpu(kernel, 2) as device:
        normed = rig.rms_norm(device, x, norm, 1e-5)
        scale = np.sqrt(np.square(x.astype(np.float64)).mean(1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(normed, x / scale * norm, rtol=1e-5, atol=1e-6)
        first, second = rig.project(device, x, norm, 1e-5, (gate, up))
        assert np.array_equal(first, product(device, normed, gate))
        assert np.array_equal(second, product(device, normed, up))
        assert distance(first, expected(normed, gate)) < 2e-6
        wanted = first / (1 + np.exp(-first)) * second
        np.testing.assert_allclose(rig.gated(device, x, norm, 1e-5, gate, up), wanted, rtol=1e-5, atol=1e-7)
        assert np.array_equal(rig.added(device, x, square), x + product(device, x, square))


@by_name
def test_a_piece_of_the_scores(kernel: InstructionSet) -> None:
    """Pieces of the head are written into their columns of the scores, of the wanted rows alone, and nowhere else."""
    first, second = random_weight(ggml.Q8_0, 50, 64), random_weight(ggml.F16, 30, 64)
    x, norm, wanted = activations(5, 64), activations(1, 64, 9)[0], [4, 1]
    with cpu(kernel, 2) as device:
        scores = rig.scored(device, x, norm, {60: first, 110: second}, 200, wanted).values
        for begin, weight in ((60, first), (110, second)):
            piece = rig.project(device, x, norm, 1e-5, [weight])[0]
            assert np.array_equal(scores[:, begin : begin + weight.rows], piece[wanted])
        assert scores.shape == (2, 200)
        assert rig.scored(device, x, norm, {60: first}, 200, []).values.shape == (0, 200)


@by_name
@pytest.mark.parametrize("vector", [ggml.F32, ggml.F16])
def test_a_stage_may_lie_anywhere(kernel: InstructionSet, vector: GgmlType) -> None:
    """What was prepared once holds for every slot that the weights come to, whatever lay there before."""
    packed, x = rig.Packed(), activations(3, 64)
    norm = Norm(packed.vector("norm", activations(1, 64, 2)[0], vector), 1e-5)
    out, hidden = Value(1, 40), Value(0, 64)
    with cpu(kernel) as device:
        step = Project(hidden, norm, (packed.matrix("w", random_weight(ggml.Q8_0, 40, 64)),), (out,))
        rig.run(device, x, [step], packed)
        wanted = device.peek(out)
        ready = device.prepare(Program((step,)), packed.tensors)
        for _ in range(2):
            device.begin(rig.alone(3), ggml.F32, x.tobytes())
            device.run(ready, packed.span(), 0, rig.DONE)
            assert np.array_equal(device.peek(out), wanted)
