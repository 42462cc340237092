"""Does the measurement read exactly what it says it read?"""

from __future__ import annotations

import pytest

from nvdma.bandwidth import Bandwidth, SourceRange, measure
from unit.nvdma.rig import PAGE, Rig, pattern


def test_every_byte_of_every_source_is_read_once(rig: Rig) -> None:
    sources = [rig.file(f"f{n}", {0: pattern(size, n)}) for n, size in enumerate((10 * PAGE + 3, PAGE, 7))]
    arena = rig.arena(8 * PAGE)
    got = measure(rig.backend(sources, arena), sources, arena, 2 * PAGE, 4)
    assert got.nbytes == 11 * PAGE + 10
    assert got.bytes_per_second == got.nbytes / got.seconds > 0


def test_ranges_are_read_up_to_their_end(rig: Rig) -> None:
    data = pattern(16 * PAGE)
    source, arena = rig.file("model", {0: data}), rig.arena(2 * PAGE)
    ranges = [SourceRange(0, 12 * PAGE, PAGE), SourceRange(0, 2 * PAGE, 3 * PAGE)]
    got = measure(rig.backend([source], arena), [source], arena, 2 * PAGE, 1, ranges=ranges)
    assert got.nbytes == 4 * PAGE
    assert arena.view[:PAGE] == data[4 * PAGE : 5 * PAGE]


def test_a_limit_ends_it(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(16 * PAGE)}), rig.arena(4 * PAGE)
    assert measure(rig.backend([source], arena), [source], arena, PAGE, 4, limit=6 * PAGE).nbytes == 6 * PAGE


def test_no_time_reads_nothing(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(PAGE)}), rig.arena(PAGE)
    got = measure(rig.backend([source], arena), [source], arena, PAGE, 1, seconds=0.0)
    assert got.nbytes == 0 and got.bytes_per_second == 0


def test_no_time_at_all_is_no_division_by_zero() -> None:
    assert Bandwidth(0, 0.0).bytes_per_second == 0


@pytest.mark.parametrize(
    ("block", "depth", "field"), [(PAGE, 9, "depth is 9"), (0, 1, "block is 0"), (2 * PAGE, 4, "do not fit")]
)
def test_what_does_not_fit_is_said(rig: Rig, block: int, depth: int, field: str) -> None:
    source, arena = rig.file("model", {0: pattern(PAGE)}), rig.arena(4 * PAGE)
    backend = rig.backend([source], arena, depth=8)
    with pytest.raises(ValueError, match=field):
        measure(backend, [source], arena, block, depth)
