"""What is left of a card's device when its memory runs out? One that works, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from nvdma.errors import GpuOutOfMemory
from nvdma.fence import DONE
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd import ggml
from nvstreamd.errors import KernelError
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import KvGroup, Model, Program, Project, Value
from unit.kernels import rig
from unit.kernels.gpu_rig import Turn, assert_same, attended, attended_by_cpu, attention, fibers
from unit.kernels.rig import Packed, activations, random_weight


def test_a_device_whose_cache_does_not_fit_is_not_open_and_keeps_nothing() -> None:
    layer = attention()
    with fibers(4 << 20) as (card, driver):
        for _ in range(2):
            with pytest.raises(GpuOutOfMemory):
                card.open(Model(Value(0, 64), 1, (KvGroup(1, 2, 16), KvGroup(1, 2, 16)), ()), Packed().span(), {},
                          [100, 1 << 20])
            assert driver.used == 0
            with pytest.raises(KernelError, match="not open"):
                card.begin(rig.alone(1, 2), ggml.F32, activations(1, 64).tobytes())
        assert_same(attended(card, layer, 2, [(activations(3, 64), [Stretch(0, 3, 0, [[0]])])]),
                    attended_by_cpu(layer, 2, [(activations(3, 64), [Stretch(0, 3, 0, [[0]])])]))


def test_a_pass_too_wide_for_the_cards_memory_fails_alone() -> None:
    """Those before and after it have the CPU's bits, though each may have to find its buffers again."""
    layer, x = attention(), activations(3000, 64)
    pages = [[*range(100)]]
    turns: list[Turn] = [(x[:3], [Stretch(0, 3, 0, pages)]), (x[3:6], [Stretch(0, 3, 3, pages)]),
                         (x[6:9], [Stretch(0, 3, 6, pages)])]
    wanted = attended_by_cpu(layer, 100, turns)
    with fibers(3 << 20) as (card, _):
        ready, weights = layer.open(card, 100), layer.packed.on(card)

        def turn(rows: Floats, stretches: Sequence[Stretch]) -> Floats:
            card.begin(Rows(stretches, []), ggml.F32, rows.tobytes())
            card.run(ready, weights, 0, DONE)
            return card.peek(layer.out)

        for number, (rows, stretches) in enumerate(turns):
            assert np.array_equal(turn(rows, stretches), wanted[number])
            with pytest.raises(GpuOutOfMemory):
                turn(x, [Stretch(0, 3000, 9, pages)])
            with pytest.raises(KernelError, match="no pass"):
                card.run(ready, weights, 0, DONE)


def test_a_graph_does_not_outlive_a_buffer_whose_successor_has_no_room() -> None:
    """A stage asks for more than there is, in the middle of a pass; the one before it is run again."""
    layer, hidden = attention(), Value(0, 64)
    greedy = Packed()
    wide = Value(9, 1 << 14)
    project = Project(hidden, None, (greedy.matrix("w", random_weight(ggml.Q8_0, wide.columns, 64)),), (wide,))
    back = Project(wide, None, (greedy.matrix("v", random_weight(ggml.Q8_0, 32, wide.columns)),), (Value(8, 32),))
    x = activations(3, 64)
    turns: list[Turn] = [(x, [Stretch(0, 3, 0, [[0]])])] * 2
    wanted = attended_by_cpu(layer, 2, turns)
    with fibers() as (card, driver):
        ready, weights = layer.open(card, 2), layer.packed.on(card)
        other, greedy_weights = card.prepare(Program((project, back)), greedy.tensors), greedy.on(card)
        for rows, stretches in turns:
            card.begin(Rows(stretches, []), ggml.F32, rows.tobytes())
            card.run(ready, weights, 0, DONE)
            # Nothing is left but what the stage before has taken.
            driver.memory = driver.used
            with pytest.raises(GpuOutOfMemory):
                card.run(other, greedy_weights, 1, DONE)
            driver.memory = 1 << 30
            card.run(ready, weights, 0, DONE)
            assert np.array_equal(card.peek(layer.out), wanted[0])


def test_segments_that_have_no_room_on_their_way_leave_nothing_behind() -> None:
    packed = Packed()
    packed.matrix("w", random_weight(ggml.Q8_0, 1024, 1024))
    with fibers(3 << 20) as (card, driver):
        form = card.own.form(packed.tensors)
        address = driver.allocate(form.nbytes)
        slot = Span(Memory(MemoryKind.VRAM, address, form.nbytes), 0, form.nbytes)
        for _ in range(2):
            with pytest.raises(GpuOutOfMemory):
                card.own.bring(packed.tensors, packed.span(), slot)
        driver.memory = 1 << 30
        assert card.own.bring(packed.tensors, packed.span(), slot).wait(1.0)
        for raw, to in ((Span(packed.span().memory, 0, form.raw_bytes - 1), slot),
                        (packed.span(), Span(slot.memory, 0, form.nbytes - 1))):
            with pytest.raises(KernelError, match="bytes"):
                card.own.bring(packed.tensors, raw, to)
        driver.free(address)
