"""Is the time of a pass expected from what passes took, and not from what was measured before anybody was served?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvstreamd.engine.cost import Multiplied, PassCost
from nvstreamd.engine.expectation import RECENT, Expectation, Measured
from nvstreamd.pieces import Kind

LAYERS, HEAD = 1_000_000, 200_000


def a_pass(rows: int, per_byte: float, *, streamed: int = 0, read_rate: float = 1e9) -> PassCost:
    """A pass that multiplied layers and head at so many seconds a byte."""
    multiplied = {Kind.LAYER: Multiplied(rows, LAYERS, LAYERS * per_byte),
                  Kind.HEAD: Multiplied(rows, HEAD, HEAD * per_byte)}
    seconds = max(streamed / read_rate, (LAYERS + HEAD) * per_byte)
    return PassCost(rows, streamed, LAYERS + HEAD - streamed, streamed, streamed / read_rate, 0.0, multiplied, seconds)


def fresh() -> Expectation:
    """Rates measured at load: much too low, as on a machine that starts other things."""
    return Expectation(Measured(1e8, None, {Kind.LAYER: {1: 1e8}, Kind.HEAD: {1: 1e8}}))


def test_before_the_first_pass_nothing_is_said() -> None:
    assert fresh().measured_seconds is None and fresh().predicted_seconds is None


def test_what_passes_took_replaces_what_was_measured_at_load() -> None:
    seen = fresh()
    assert seen.expected(a_pass(1, 0)) == pytest.approx((LAYERS + HEAD) / 1e8)
    seen.saw(a_pass(1, 1e-9), decode=True)
    assert seen.predicted_seconds == pytest.approx(1.2e-2), "what is said of a pass was known before it"
    for _ in range(3):
        seen.saw(a_pass(1, 1e-9), decode=True)
    assert seen.measured_seconds == pytest.approx(1.2e-3) and seen.predicted_seconds == pytest.approx(1.2e-3)


def test_widths_have_rates_of_their_own() -> None:
    """A prompt's chunk multiplies fewer weights a second than one row does; decoding is not thought slower for it."""
    seen = fresh()
    seen.saw(a_pass(1, 1e-9), decode=True)
    seen.saw(a_pass(64, 30e-9), decode=False)
    seen.saw(a_pass(8, 2e-9), decode=False)
    assert seen.expected(a_pass(1, 0)) == pytest.approx(1.2e-3)
    assert seen.expected(a_pass(64, 0)) == pytest.approx(36e-3)
    assert seen.expected(a_pass(8, 0)) == pytest.approx(2.4e-3)
    # Not seen: on a straight line between those that were, and by the row beyond them.
    assert seen.expected(a_pass(36, 0)) == pytest.approx((2.4e-3 + 36e-3) / 2)
    assert seen.expected(a_pass(128, 0)) == pytest.approx(72e-3)


def test_the_slower_of_drive_and_processor_decides() -> None:
    seen = fresh()
    for _ in range(3):
        seen.saw(a_pass(1, 1e-9, streamed=600_000, read_rate=1e8), decode=True)
    assert seen.read.value == pytest.approx(1e8) and seen.predicted_seconds == pytest.approx(6e-3)


def test_a_machine_that_changes_is_noticed() -> None:
    seen = fresh()
    for _ in range(RECENT):
        seen.saw(a_pass(1, 1e-9), decode=True)
    for _ in range(2 * RECENT):
        seen.saw(a_pass(1, 3e-9), decode=True)
    assert seen.predicted_seconds == pytest.approx(3.6e-3)


def test_a_pass_without_reads_says_nothing_of_the_drive() -> None:
    seen = fresh()
    seen.saw(a_pass(1, 1e-9), decode=True)
    assert seen.read.value == 1e8


def test_what_is_neither_read_nor_multiplied_takes_time_too() -> None:
    """A small model's pass is to an eighth rows laid out and scores handed on."""
    seen = fresh()
    for _ in range(5):
        seen.saw(replace(a_pass(1, 1e-9), seconds=1.4e-3), decode=True)
    assert seen.predicted_seconds == pytest.approx(1.4e-3)


def test_the_head_of_a_prompts_last_chunk_is_no_wide_one() -> None:
    """64 rows, of which one is sampled: it says nothing of a pass that samples for 64 users."""
    seen = fresh()
    seen.saw(a_pass(64, 10e-9), decode=True)
    wide = a_pass(64, 10e-9)
    chunk = replace(wide, multiplied={**wide.multiplied, Kind.HEAD: Multiplied(1, HEAD, HEAD * 1e-9)}, seconds=0.0)
    for _ in range(8):
        seen.saw(chunk, decode=False)
    assert seen.expected(a_pass(64, 0)) == pytest.approx(12e-3)
