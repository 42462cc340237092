"""What does a card's device do beyond its arithmetic: graphs, what is refused, what is reported, experts?"""

from __future__ import annotations

import numpy as np
import pytest

from nvdma.fence import DONE
from nvstreamd import ggml
from nvstreamd.errors import KernelError
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import Device, Visit
from nvstreamd.kernels.gpu_room import LISTS
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import AddNormed, Expert, Heads, Mix, Model, Norm, Program, Project, Route, Score, Value
from unit.kernels import rig
from unit.kernels.gpu_rig import CPU, HEADS, Turn, assert_same, attended, attended_by_cpu, attention, fibers
from unit.kernels.rig import Packed, activations, cpu, random_weight


def test_a_stage_is_one_graph_whatever_the_positions_pages_and_stretches_of_as_many_rows() -> None:
    """Two rows of two sequences: later, over other pages, and with the rows in the other order."""
    layer, x = attention(), activations(12, 64)
    prompts = [Stretch(0, 5, 0, [[3]]), Stretch(5, 5, 0, [[1, 0]])]
    turns: list[Turn] = [
        (x[:10], prompts),
        (x[10:], [Stretch(0, 1, 5, [[3]]), Stretch(1, 1, 5, [[1, 0]])]),
        (x[3:5], [Stretch(0, 1, 6, [[1, 0]]), Stretch(1, 1, 6, [[3]])]),
        (x[6:8], [Stretch(0, 1, 0, [[2]]), Stretch(1, 1, 7, [[3]])]),
    ]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 4, turns)
    with fibers() as (card, driver):
        assert_same(attended(card, layer, 4, turns), wanted)
        assert (driver.graphs_made, driver.graphs_run) == (2, 4)


def test_a_card_whose_kernels_cannot_read_host_memory_is_sent_copies() -> None:
    """Rows, places and hidden state come either way, and are the same."""
    layer, x = attention(), activations(6, 64)
    turns: list[Turn] = [(x[:5], [Stretch(0, 5, 0, [[1]])]), (x[5:], [Stretch(0, 1, 5, [[1]])])]
    with fibers() as (card, driver):
        wanted, kernels = attended(card, layer, 2, turns), driver.launches
    with fibers(reads_host=False) as (card, driver):
        assert_same(attended(card, layer, 2, turns), wanted)
        assert driver.launches < kernels and "cannot read host memory" in card.name


def test_two_rows_of_one_sequence_are_not_the_graph_of_two_sequences_with_a_row_each() -> None:
    layer, x = attention(Heads(16, 1, 16)), activations(4, 64)
    turns: list[Turn] = [
        (x[:2], [Stretch(0, 1, 0, [[0]]), Stretch(1, 1, 0, [[1]])]), (x[2:], [Stretch(0, 2, 1, [[0]])]),
        (x[1:3], [Stretch(0, 1, 3, [[0]]), Stretch(1, 1, 1, [[1]])])]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 2, turns)
    with fibers() as (card, _):
        assert_same(attended(card, layer, 2, turns), wanted)


def test_a_pass_that_outgrows_the_buffers_drops_the_graphs_that_hold_them() -> None:
    """Two rows, then 40 where there is room for 32, then two again; and page tables that grow on the way."""
    layer, x = attention(), activations(40, 64)
    long = [[*range(9)]]
    turns: list[Turn] = [
        (x[:2], [Stretch(0, 2, 0, long)]), (x[2:4], [Stretch(0, 2, 2, long)]),
        (x, [Stretch(0, 40, 4, long)]),
        (x[:2], [Stretch(0, 2, 44, long)]), (x[5:7], [Stretch(0, 2, 46, [[*range(9), *range(9, 200)]])]),
    ]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 200, turns)
    with fibers() as (card, driver):
        assert_same(attended(card, layer, 200, turns), wanted)
        # Of the narrow pass before; the wide one's; of the narrow one after, whose page table is larger.
        assert driver.graphs == 1 and driver.graphs_made == 4


def test_a_stage_that_wants_larger_buffers_than_the_one_before_leaves_it_right() -> None:
    """Stage 0 is noted with buffers that stage 1 outgrows, and run again in the next pass."""
    hidden, x = Value(0, 64), activations(3, 64)
    narrow, wide = Packed(), Packed()
    small, large = Value(1, 40), Value(2, 96)
    first = Program((Project(hidden, None, (narrow.matrix("w", random_weight(ggml.Q4_0, 40, 64)),), (small,)),))
    norm = Norm(wide.vector("norm", activations(1, 64, 3)[0]), 1e-5)
    second = Program((
        Project(hidden, norm, (wide.matrix("f", random_weight(ggml.F16, 512, 64)),), (Value(3, 512),)),
        Project(Value(3, 512), None, (wide.matrix("w", random_weight(ggml.Q8_0, 96, 512)),), (large,)),
    ))

    def computed(device: Device) -> list[Floats]:
        device.open(Model(hidden, 1, (), ()), Packed().span(), {}, [])
        stages = [(device.prepare(program, packed.tensors), packed.on(device))
                  for program, packed in ((first, narrow), (second, wide))]
        found = []
        for turn in range(3):
            device.begin(Rows([Stretch(0, 3, 0, [])], []), ggml.F32, (x * (turn + 1)).tobytes())
            for number, (ready, weights) in enumerate(stages):
                device.run(ready, weights, number, DONE)
            found += [device.peek(small), device.peek(large)]
        return found

    with cpu(CPU) as device:
        wanted = computed(device)
    with fibers() as (card, driver):
        assert_same(computed(card), wanted)
        assert driver.graphs == 2


def test_norms_of_rows_of_every_width_find_room_in_the_blocks_memory() -> None:
    """A narrow row first: what a kernel may have of the block's memory is said once. 12,288 columns take all of it."""
    for columns in (64, 12288):
        x, norm = activations(1, columns), activations(1, columns, 2)[0]
        weight = random_weight(ggml.Q8_0, 8, columns)
        with cpu(CPU) as device:
            wanted = rig.project(device, x, norm, 1e-5, [weight])
        with fibers() as (card, _):
            rig.project(card, activations(1, 32), activations(1, 32, 2)[0], 1e-5, [random_weight(ggml.Q8_0, 8, 32)])
            assert_same(rig.project(card, x, norm, 1e-5, [weight]), wanted)


def test_graphs_outlive_users_who_come_one_by_one() -> None:
    """Each wants scores of one more row: not each of them makes the others' stages be noted again."""
    hidden, packed, x = Value(0, 64), Packed(), activations(9, 64)
    norm = Norm(packed.vector("n", np.ones(64, np.float32)), 1e-5)
    step = Score(hidden, norm, packed.matrix("w", random_weight(ggml.Q8_0, 20, 64)), 0)
    with fibers() as (card, driver):
        card.open(Model(hidden, 20, (), ()), Packed().span(), {}, [])
        ready, weights = card.prepare(Program((step,)), packed.tensors), packed.on(card)
        for wanted in (*range(1, 10), *range(1, 10)):
            card.begin(Rows([Stretch(0, 9, 0, [])], [*range(wanted)]), ggml.F32, x.tobytes())
            card.run(ready, weights, 0, DONE)
            assert card.scores().values.shape == (wanted, 20)
        # 1, 2, 4 and 8 made room anew: what was noted with 6 to 8 rows was dropped with the 9th's.
        assert driver.graphs == 9 and driver.graphs_made <= 9 + 8


def test_heads_that_the_kernels_have_no_room_for_are_refused() -> None:
    """A hostile file must not write past a block's memory."""
    layer = attention(Heads(1, 1, 288), 32)
    with fibers() as (card, _), pytest.raises(KernelError, match="heads of 288"):
        layer.open(card, 1)


def test_more_rows_than_a_launch_can_have_are_refused() -> None:
    with fibers() as (card, _):
        card.open(Model(Value(0, 1), 1, (), ()), Packed().span(), {}, [])
        with pytest.raises(KernelError, match="65536 rows"):
            card.begin(Rows([Stretch(0, 1 << 16, 0, [])], []), ggml.F32, bytes(4 << 16))


@pytest.mark.parametrize("rows", [1, 70])
def test_nan_in_weights_is_reported_by_the_first_stage_that_has_it(rows: int) -> None:
    hidden, x = Value(0, 64), activations(rows, 64)
    good, bad = Packed(), Packed()
    norm = activations(1, 64, 3)[0]
    programs = [(Program((AddNormed(hidden, hidden, Norm(packed.vector("n", values), 1e-5)),)), packed)
                for packed, values in ((good, norm), (bad, np.where(np.arange(64) == 63, np.nan, norm)))]
    head = Packed()
    score = Score(hidden, Norm(head.vector("n", norm), 1e-5), head.matrix("w", random_weight(ggml.Q8_0, 50, 64)), 0)
    with fibers() as (card, _):
        card.open(Model(hidden, 50, (), ()), Packed().span(), {}, [])
        stages = [(card.prepare(program, packed.tensors), packed.on(card)) for program, packed in programs]
        scoring = card.prepare(Program((score,)), head.tensors), head.on(card)
        for order, wanted in (((0, 1, 0, 1), 1), ((0, 0, 0, 1), 3), ((0, 0, 0, 0), None)):
            card.begin(Rows([Stretch(0, rows, 0, [])], [0]), ggml.F32, x.tobytes())
            for number, which in enumerate(order):
                card.run(*stages[which], number, DONE)
            card.run(*scoring, 4, DONE)
            assert card.scores().unsound == wanted


def test_nan_in_a_scale_of_blocks_reaches_the_scores() -> None:
    weight = random_weight(ggml.Q8_0, 50, 64)
    weight.data[2 * 34 : 2 * 34 + 2] = np.array([np.nan], np.float16).view(np.uint8)
    with fibers() as (card, _):
        found = rig.scored(card, activations(2, 64), activations(1, 64, 2)[0], {0: weight}, 50, [1])
    assert found.unsound == 0 and np.isnan(found.values).tolist() == [[row == 1 for row in range(50)]]


def test_more_visits_than_desks_are_each_served_by_their_own_places() -> None:
    """Each expert comes in a call of its own, and nobody waits between them."""
    experts, used, columns, inner = 3 * LISTS, 2, 32, 32
    x, norm = activations(40, columns), activations(1, columns, 2)[0]
    router = random_weight(ggml.F32, experts, columns, 50)
    weights = [(random_weight(ggml.Q8_0, inner, columns, 3 * i), random_weight(ggml.Q8_0, inner, columns, 3 * i + 1),
                random_weight(ggml.Q8_0, columns, inner, 3 * i + 2)) for i in range(experts)]
    order = np.random.default_rng(1).permutation(experts).tolist()

    def routed(device: Device) -> rig.Routed:
        return rig.routed(device, x, norm, router, weights, used, order)

    with cpu(CPU) as device:
        wanted = routed(device)
    assert np.unique(wanted.experts).size > LISTS
    with fibers() as (card, _):
        assert np.array_equal(routed(card).x, wanted.x)


def test_an_expert_that_serves_nobody_is_passed_over() -> None:
    hidden, h, ranks, parts = (Value(i, n) for i, n in enumerate((32, 32, 1, 32)))
    packed = Packed()
    route = Route(hidden, Norm(packed.vector("n", np.ones(32, np.float32)), 1e-5),
                  packed.matrix("r", random_weight(ggml.F32, 2, 32)), h, ranks)
    home = Packed()
    expert = Expert(h, *(home.matrix(name, random_weight(ggml.Q8_0, 32, 32, i)) for i, name in enumerate("gud")), parts)
    with fibers() as (card, _):
        card.open(Model(hidden, 1, (), ()), Packed().span(), {}, [])
        ready = [card.prepare(Program((step,)), own.tensors) for step, own in ((route, packed), (expert, home))]
        mix = card.prepare(Program((Mix(hidden, ranks, parts),)), {})
        x = activations(1, 32)
        card.begin(Rows([Stretch(0, 1, 0, [])], []), ggml.F32, x.tobytes())
        card.run(ready[0], packed.on(card), 0, DONE)
        span = home.on(card)
        visits = [Visit(ready[1], span, np.array(places, np.int64)) for places in ([], [0], [])]
        assert card.experts(visits[:1], DONE).wait(1.0)
        card.run(mix, span, 0, card.experts(visits, DONE))
        assert np.isfinite(card.peek(hidden)).all() and not np.array_equal(card.peek(hidden), x)


def test_the_next_pass_may_begin_before_anybody_waited_for_this_one() -> None:
    """Rows and facts lie in host memory that the card has not read yet."""
    layer, x = attention(), activations(64, 64)
    stretches = [Stretch(0, 32, 0, [[0]])], [Stretch(0, 32, 32, [[0, 1]])]
    (_, wanted) = attended_by_cpu(layer, 2, [(x[:32], stretches[0]), (x[32:], stretches[1])])
    with fibers() as (card, _):
        ready, weights = layer.open(card, 2), layer.packed.on(card)
        for rows, own in zip((x[:32], x[32:]), stretches, strict=True):
            card.begin(Rows(own, []), ggml.F32, rows.tobytes())
            card.run(ready, weights, 0, DONE)
        assert np.array_equal(card.peek(layer.out), wanted)


def test_a_device_is_opened_anew_for_another_model() -> None:
    """Its cache, its graphs and its buffers are the new model's."""
    with fibers() as (card, driver):
        for heads in (HEADS, Heads(4, 1, 32), HEADS):
            layer = attention(heads)
            turns: list[Turn] = [(activations(3, 64), [Stretch(0, 3, 0, [[1]])])]
            assert_same(attended(card, layer, 2, turns), attended_by_cpu(layer, 2, turns))
            assert driver.graphs == 1


def test_wanted_rows_may_be_more_than_there_are() -> None:
    """A row asked for often: no buffer may be written past its end."""
    weight, x = random_weight(ggml.Q8_0, 20, 64), activations(2, 64)
    wanted = [1, 0] * 40
    with fibers() as (card, _):
        found = rig.scored(card, x, activations(1, 64, 2)[0], {0: weight}, 20, wanted).values
    with cpu(CPU) as device:
        assert np.array_equal(found, rig.scored(device, x, activations(1, 64, 2)[0], {0: weight}, 20, wanted).values)
