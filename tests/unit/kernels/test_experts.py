"""Does a layer of experts give a row the same bits, whatever arrives first, whoever is beside it, on every device?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.gpu_launch import group_size
from nvstreamd.program import Expert, Matrix, Mix, Norm, Program, Route, Value
from support import arithmetic
from support.arithmetic import F, numbers
from unit.kernels import rig
from unit.kernels.rig import Packed, Routed, Weight, activations, every_device, random_weight

VECTORS = Path(__file__).parents[2] / "fixtures/arithmetic.json"
DEVICES = every_device() | {"hybrid": rig.hybrid}
COLUMNS, INNER, EXPERTS, USED = 256, 512, 41, 3
# Of integer blocks alone, of both kinds, of floating-point numbers alone.
KINDS = [(ggml.Q4_0, ggml.Q4_0, ggml.Q4_0), (ggml.Q4_K, ggml.Q5_K, ggml.Q6_K), (ggml.Q8_0, ggml.F16, ggml.Q8_0),
         (ggml.Q4_K, ggml.Q4_K, ggml.F16), (ggml.F32, ggml.BF16, ggml.F16), (ggml.MXFP4, ggml.MXFP4, ggml.IQ4_NL)]
# Of each way to multiply one: the others are thorough.
SOON = (KINDS[1], KINDS[5])


def router() -> Weight:
    return random_weight(ggml.F32, EXPERTS, COLUMNS, 50)


def experts(kinds: tuple[GgmlType, GgmlType, GgmlType]) -> list[tuple[Weight, Weight, Weight]]:
    gate, up, down = kinds
    return [(random_weight(gate, INNER, COLUMNS, 3 * each), random_weight(up, INNER, COLUMNS, 3 * each + 1),
             random_weight(down, COLUMNS, INNER, 3 * each + 2)) for each in range(EXPERTS)]


def computed(device: str, rows: Floats, kinds: tuple[GgmlType, GgmlType, GgmlType], threads: int = 2,
             order: list[int] | None = None) -> Routed:
    with DEVICES[device](threads) as opened:
        return rig.routed(opened, rows, 1 + activations(1, COLUMNS, 9)[0] / 8, router(), experts(kinds), USED,
                          order or [])


@pytest.mark.parametrize("kinds", [pytest.param(kinds, id="-".join(kind.name for kind in kinds),
                                               marks=() if kinds in SOON else pytest.mark.thorough) for kinds in KINDS])
def test_layers_of_experts_have_the_same_bits_on_every_device(kinds: tuple[GgmlType, GgmlType, GgmlType]) -> None:
    rows = activations(12, COLUMNS)
    wanted = computed("torch", rows, kinds)
    assert np.isfinite(wanted.x).all() and not np.array_equal(wanted.x, rows)
    for device in set(DEVICES) - {"torch"}:
        found = computed(device, rows, kinds)
        assert np.array_equal(found.experts, wanted.experts), device
        assert np.array_equal(found.weights, wanted.weights) and np.array_equal(found.x, wanted.x), device


@pytest.mark.parametrize("kinds", SOON, ids=str)
def test_experts_that_rest_in_vram_have_the_same_bits_however_rows_are_dealt(
        kinds: tuple[GgmlType, GgmlType, GgmlType]) -> None:
    """Each pair by itself, then in groups of up to 8, 32 and 128 rows, some of them full and some of one row."""
    few, used = experts(kinds)[:5], 2
    router_ = random_weight(ggml.F32, len(few), COLUMNS, 50)
    norm, rows = 1 + activations(1, COLUMNS, 9)[0] / 8, activations(150, COLUMNS)
    with DEVICES["portable"](2) as opened:
        wanted = rig.routed(opened, rows, norm, router_, few, used)
    sizes = set()
    for count in (2, 8, 40, 150):
        sizes.add(group_size(count * used, len(few)) if count * used > len(few) else 0)
        with DEVICES["card"](2) as opened:
            found = rig.routed(opened, rows[:count], norm, router_, few, used, resting=True)
        assert np.array_equal(found.x, wanted.x[:count]), count
    assert sizes == {0, 8, 32, 128}


@pytest.mark.parametrize("device", DEVICES)
def test_neither_order_nor_company_nor_threads_show(device: str) -> None:
    kinds, rows = KINDS[1], activations(40 if device != "torch" else 9, COLUMNS)
    whole = computed(device, rows, kinds)
    mixed = np.random.default_rng(3).permutation(EXPERTS).tolist()
    assert np.array_equal(computed(device, rows, kinds, threads=3, order=mixed).x, whole.x)
    assert np.array_equal(computed(device, rows[5:6], kinds, threads=1).x, whole.x[5:6])


def test_the_experts_are_those_of_the_largest_scores_and_equal_ones_go_by_number() -> None:
    """The router is the identity: a score is an element of the normed row."""
    same = np.eye(40, COLUMNS, dtype=np.float32)
    router_ = Weight(ggml.F32, 40, COLUMNS, same.view(np.uint8).ravel())
    rows = np.full((2, COLUMNS), 0.5, np.float32)
    rows[1, [7, 30, 3]] = (3.0, 2.0, 3.0)
    for device in DEVICES.values():
        with device(1) as opened:
            found = rig.routed(opened, rows, np.ones(COLUMNS, np.float32), router_, experts(KINDS[0])[:40], USED)
        assert found.experts.tolist() == [[0, 1, 2], [3, 7, 30]]
        assert np.allclose(found.weights.sum(axis=1), 1) and found.weights[1, 0] == found.weights[1, 1]


@pytest.mark.parametrize("name", ["route", "mix"])
def test_the_vectors_are_what_the_page_says(name: str) -> None:
    assert hexadecimal(by_page()[name]) == json.loads(VECTORS.read_text())["results"][name]


@pytest.mark.parametrize("device", DEVICES)
def test_devices_reproduce_the_vectors(device: str) -> None:
    """Scores are what an identity makes of a row whose norm is its inverse; parts are what experts of identities do."""
    results = json.loads(VECTORS.read_text())["results"]
    scores = np.array(numbers(10, EXPERTS), np.float32) * F(4)
    with DEVICES[device](1) as opened:
        ranks, weights = by_device(opened, scores)
        assert hexadecimal([*ranks, *weights]) == results["route"]


def by_device(device: rig.Device, scores: Floats) -> tuple[list[F], list[F]]:
    """The ranks and weights that a device gives scores: the bias of a router whose weights are 0."""
    packed = Packed(on_card=True)
    zeros = Weight(ggml.F32, EXPERTS, 32, np.zeros(EXPERTS * 32 * 4, np.uint8), bias=scores)
    h, weights = Value(1, 32), Value(2, USED)
    rig.run(device, np.ones((1, 32), np.float32), [
        Route(Value(0, 32), Norm(packed.vector("norm", np.ones(32, np.float32)), 1e-5), packed.matrix("w", zeros), h,
              weights)], packed)
    return [F(each) for each in device.routing()[0]], list(device.peek(weights)[0])


def by_page() -> dict[str, list[F]]:
    """The vectors by the page alone."""
    ranks, weights = arithmetic.route([F(each) * F(4) for each in numbers(10, EXPERTS)], USED)
    third = numbers(3, 3 * 83)
    parts = [third[83 * rank : 83 * (rank + 1)] for rank in range(USED)]
    return {"route": [*map(F, ranks), *weights], "mix": arithmetic.mix(numbers(2, 83), weights, parts)}


def hexadecimal(found: list[F]) -> str:
    return np.array(found, "<f4").tobytes().hex()


def test_a_router_of_nan_chooses_experts_that_there_are() -> None:
    bad = Weight(ggml.F32, EXPERTS, COLUMNS, np.full(EXPERTS * COLUMNS, np.nan, np.float32).view(np.uint8))
    for device in DEVICES.values():
        with device(1) as opened:
            found = rig.routed(opened, activations(3, COLUMNS), np.ones(COLUMNS, np.float32), bad,
                               experts(KINDS[0]), USED)
        assert all(len(set(row)) == USED and 0 <= min(row) <= max(row) < EXPERTS for row in found.experts.tolist())
        assert np.isnan(found.x).all()


def test_programs_whose_sizes_do_not_fit_are_refused() -> None:
    x, h, weights, parts = Value(0, 32), Value(1, 32), Value(2, 2), Value(3, 64)
    packed = Packed(on_card=True)
    norm = Norm(packed.vector("norm", np.ones(32, np.float32)), 1e-5)
    router_ = packed.matrix("router", random_weight(ggml.F32, 4, 32))
    tall, flat = (packed.matrix(name, random_weight(ggml.F32, *shape)) for name, shape in
                  (("tall", (64, 32)), ("flat", (32, 64))))
    wrong = [
        Route(x, norm, router_, Value(1, 64), weights), Route(x, norm, router_, h, Value(2, 5)),
        Expert(h, tall, tall, tall, parts), Expert(h, tall, flat, flat, parts), Expert(h, flat, flat, tall, parts),
        Expert(h, tall, tall, flat, Value(3, 63)), Mix(x, weights, Value(3, 63)),
        Expert(h, Matrix("none", 64, 32), tall, flat, parts),
    ]
    for name, device in DEVICES.items():
        with device(1) as opened:
            rig.begin(opened, np.ones((1, 32), np.float32), rig.alone(1))
            for step in wrong:
                with pytest.raises(KernelError):
                    opened.prepare(Program((step,)), packed.tensors)
            assert opened.prepare(Program((Expert(h, tall, tall, flat, parts),)), packed.tensors), name
