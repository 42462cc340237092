"""Is a pass over weights that all rest in VRAM begun in one call, and are its results those of stage by stage?"""

from __future__ import annotations

import numpy as np
import pytest

from nvdma.errors import GpuOutOfMemory
from nvdma.fence import DONE
from nvstreamd import ggml
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import Add, Model, Norm, Program, Project, Score, Value
from unit.kernels.gpu_rig import CPU, assert_same, fibers
from unit.kernels.rig import Packed, activations, cpu, random_weight

HIDDEN, WIDE = Value(0, 64), Value(1, 96)
VOCABULARY = 20


class Stages:
    """Two layers that go up and come back, and a head."""

    def __init__(self, device: Device) -> None:
        device.open(Model(HIDDEN, VOCABULARY, (), ()), Packed().span(), {}, [])
        # A processor multiplies weights where they lie: they are kept.
        self.made = [self._layer(seed) for seed in (1, 2)] + [self._head()]
        self.device = device
        self.ready = [(device.prepare(program, packed.tensors), packed.on(device)) for program, packed in self.made]

    @staticmethod
    def _layer(seed: int) -> tuple[Program, Packed]:
        packed = Packed()
        norm = Norm(packed.vector("norm", activations(1, 64, seed)[0]), 1e-5)
        up = packed.matrix("up", random_weight(ggml.Q8_0, 96, 64, seed))
        down = packed.matrix("down", random_weight(ggml.Q4_0, 64, 96, seed))
        return Program((Project(HIDDEN, norm, (up,), (WIDE,)), Add(HIDDEN, WIDE, down))), packed

    @staticmethod
    def _head() -> tuple[Program, Packed]:
        packed = Packed()
        norm = Norm(packed.vector("norm", activations(1, 64, 9)[0]), 1e-5)
        return Program((Score(HIDDEN, norm, packed.matrix("w", random_weight(ggml.Q8_0, VOCABULARY, 64)), 0),)), packed

    def begin(self, x: Floats) -> None:
        """A pass of which all rows are wanted, begun and not run."""
        self.device.begin(Rows([Stretch(0, len(x), 0, [])], [*range(len(x))]), ggml.F32, x.tobytes())

    def run(self, x: Floats) -> Floats:
        """The scores of a pass."""
        self.begin(x)
        done = DONE
        for number, (ready, weights) in enumerate(self.ready):
            done = self.device.run(ready, weights, number, done)
        return self.device.scores().values


def turns() -> list[Floats]:
    """Passes of a few widths; one is too wide for a graph, and outgrows what was there."""
    return [activations(rows, 64, seed) for seed, rows in enumerate((2, 1, 1, 80, 1, 2, 2))]


def wanted() -> list[Floats]:
    with cpu(CPU) as device:
        stages = Stages(device)
        return [stages.run(x) for x in turns()]


def chained(card: GpuDevice) -> Stages:
    stages = Stages(card)
    card.chain()
    return stages


def test_a_pass_is_one_graph_and_has_the_bits_of_its_stages() -> None:
    with fibers() as (card, driver):
        stages = chained(card)
        assert_same([stages.run(x) for x in turns()], wanted())
        # Of the widths 1 and 2, before and after the wide pass.
        assert driver.graphs_made == 4 and driver.graphs_run == 6
    with fibers() as (card, driver):
        stages = Stages(card)
        assert_same([stages.run(x) for x in turns()], wanted())
        assert driver.graphs_run == 6 * 3


def test_whoever_waits_in_the_middle_has_what_was_computed_until_there() -> None:
    x = turns()[1]
    with cpu(CPU) as device:
        before = Stages(device)
        before.begin(x)
        before.device.run(*before.ready[0], 0, DONE)
        halfway, scores = before.device.peek(HIDDEN), wanted()[1]
    with fibers() as (card, driver):
        stages = chained(card)
        for _ in range(2):
            stages.begin(x)
            first = card.run(*stages.ready[0], 0, DONE)
            assert np.array_equal(card.peek(HIDDEN), halfway) and first.done() and first.wait(1.0)
            card.run(*stages.ready[1], 1, first)
            card.run(*stages.ready[2], 2, first)
            assert np.array_equal(card.scores().values, scores)
        assert driver.graphs_made == 2 and driver.graphs_run == 4


def test_a_pass_that_was_given_up_leaves_nothing_to_the_next() -> None:
    with fibers() as (card, driver):
        stages = chained(card)
        stages.begin(turns()[1])
        fence = card.run(*stages.ready[0], 0, DONE)
        assert np.array_equal(stages.run(turns()[0]), wanted()[0])
        assert driver.graphs_run == 1 and fence.done()


def test_no_room_is_said_when_the_pass_is_begun() -> None:
    with fibers() as (card, driver):
        stages = chained(card)
        driver.memory = driver.used
        with pytest.raises(GpuOutOfMemory):
            stages.run(turns()[1])
        driver.memory = 1 << 30
        assert np.array_equal(stages.run(turns()[1]), wanted()[1])
