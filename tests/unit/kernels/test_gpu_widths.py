"""Do a card's kernels have the CPU's bits at every width, and over every length of context?"""

from __future__ import annotations

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.rows import Stretch
from nvstreamd.program import Heads
from unit.kernels import rig
from unit.kernels.gpu_rig import CPU, HEADS, Turn, assert_same, attended, attention, fibers
from unit.kernels.rig import Weight, activations, cpu, random_weight

# Fibers take seconds for what a card does in microseconds.
pytestmark = pytest.mark.thorough

# One type of each kind of packing. Columns are no multiple of 128 where blocks allow it, rows of weights none of 16.
PACKINGS = [(ggml.Q4_0, 37, 160), (ggml.Q8_0, 20, 96), (ggml.Q5_1, 37, 352), (ggml.Q2_K, 21, 256), (ggml.Q6_K, 21, 768),
            (ggml.MXFP4, 37, 224)]
WIDTHS = (1, 2, 8, 9, 16, 17, 64, 65, 130)


@pytest.mark.parametrize(("kind", "out", "columns"), [
    *PACKINGS, (ggml.Q4_0, 150, 1696),
    (ggml.Q5_K, 259, 1280)], ids=str)
def test_products_of_every_width_have_the_cpus_bits(kind: GgmlType, out: int, columns: int) -> None:
    """At every boundary between kernels, with biases: each row as beside all others."""
    x, norm = activations(max(WIDTHS), columns), activations(1, columns, 7)[0]
    weight = random_weight(kind, out, columns)
    weight = Weight(kind, out, columns, weight.data, activations(1, out, 8)[0])
    with cpu(CPU) as device:
        (wanted,) = rig.project(device, x, norm, 1e-5, [weight])
    with fibers() as (card, _):
        for rows in WIDTHS:
            (found,) = rig.project(card, x[:rows], norm, 1e-5, [weight])
            assert np.array_equal(found, wanted[:rows]), rows


@pytest.mark.parametrize("rows", [3, 12, 30, 70])
def test_three_matrices_of_two_types_in_one_step(rows: int) -> None:
    """Of which two, neighbours, go together; rectangles and tiles must find their matrix. Floats beside blocks, too."""
    kinds = [(ggml.Q4_0, 37), (ggml.Q4_0, 150), (ggml.Q8_0, 18)], [(ggml.Q6_K, 40), (ggml.F16, 33), (ggml.Q6_K, 17)]
    for shapes in kinds:
        columns = 256
        weights = [Weight(kind, out, columns, random_weight(kind, out, columns, i).data,
                          activations(1, out, 30 + i)[0] if i != 1 else None) for i, (kind, out) in enumerate(shapes)]
        x, norm = activations(rows, columns), activations(1, columns, 7)[0]
        with cpu(CPU) as device:
            wanted = rig.project(device, x, norm, 1e-5, weights)
        with fibers() as (card, _):
            assert_same(rig.project(card, x, norm, 1e-5, weights), wanted)


SHAPES = [Heads(2, 1, 256), Heads(4, 2, 80), HEADS]


@pytest.mark.parametrize("heads", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 300, 40], ids=str)
def test_a_row_far_on_finds_what_one_among_many_does(heads: Heads, window: int | None) -> None:
    """900 tokens, in one pass but for the last, whose chunks go to blocks of their own and are joined."""
    layer, x = attention(heads, 32, window), activations(901, 32)
    table = [[*np.random.default_rng(2).permutation(29).tolist()]]
    turns: list[Turn] = [(x[:700], [Stretch(0, 700, 0, table)]), (x[700:900], [Stretch(0, 200, 700, table)]),
                         (x[900:], [Stretch(0, 1, 900, table)])]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 29, turns)
    with fibers() as (card, _):
        found = attended(card, layer, 29, turns)
        (tiling,) = card.room.over.tilings.values()
        assert tiling.chunks == {None: 4, 300: 2, 40: 0}[window]
    assert_same(found, wanted)


def test_sequences_of_unlike_length_share_a_pass() -> None:
    """One a chunk long, one of four chunks, one that begins: some blocks have nothing to do."""
    layer, x = attention(HEADS, 32, 600), activations(830, 32)
    tables = [[*range(9)], [*range(9, 40)], [40]]
    turns: list[Turn] = [
        (x[:250], [Stretch(0, 250, 0, [tables[0]])]), (x[:800], [Stretch(0, 800, 0, [tables[1]])]),
        (x[800:806], [Stretch(0, 2, 250, [tables[0]]), Stretch(2, 1, 800, [tables[1]]), Stretch(3, 3, 0, [tables[2]])]),
        (x[806:809], [Stretch(0, 1, 252, [tables[0]]), Stretch(1, 1, 801, [tables[1]]), Stretch(2, 1, 3, [tables[2]])]),
    ]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 41, turns)
    with fibers() as (card, _):
        assert_same(attended(card, layer, 41, turns), wanted)


def test_many_tiles_leave_chunks_to_one_block() -> None:
    """Where blocks are enough without cutting, one goes through all chunks; it finds the same."""
    layer, x = attention(Heads(4, 4, 8), 32), activations(1030, 32)
    table = [[*range(33)]]
    turns: list[Turn] = [(x[:400], [Stretch(0, 400, 0, table)]), (x[400:1020], [Stretch(0, 620, 400, table)]),
                         (x[1020:], [Stretch(0, 10, 1020, table)])]
    with cpu(CPU) as device:
        wanted = attended(device, layer, 33, turns)
    with fibers() as (card, _):
        assert_same(attended(card, layer, 33, turns), wanted)
