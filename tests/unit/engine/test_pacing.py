"""Do prompts take what a pass has to spare, and no more of it than others can bear?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.cost import Multiplied, PassCost
from nvstreamd.engine.expectation import Expectation, Measured
from nvstreamd.engine.pacing import (
    BEYOND_READS,
    FEWEST,
    LONGEST_REST,
    STRETCH,
    UNHURRIED_SECONDS,
    ByCost,
    Overrun,
    PassBytes,
    most_tokens,
)
from nvstreamd.pieces import Kind
from nvstreamd.weights.flow.assignment import Assignment, HostRates
from nvstreamd.weights.flow.plan import Plan
from support.examples import examples

LAYERS, HEAD = 1_000_000_000, 200_000_000
# Bytes a second that a processor multiplies by so many rows: one costs little more than nothing beside eight.
ROWS = {1: 2e10, 8: 1.5e10, 64: 4e9, 512: 5e8}
PURE = settings(derandomize=True, deadline=None, database=None, max_examples=examples(200))


def paced(read: float, streamed: float, latency: float | None = None, most: int = 4096,
          rows: dict[int, float] = ROWS) -> ByCost:
    """The pacing of a model of which a part comes off a drive of that many bytes a second."""
    expectation = Expectation(Measured(read, None, {Kind.LAYER: rows, Kind.HEAD: rows}))
    multiplied = {Kind.CONSTANTS: 0, Kind.LAYER: LAYERS, Kind.HEAD: HEAD}
    return ByCost(expectation, PassBytes(multiplied, {kind: int(streamed * size) for kind, size in multiplied.items()}),
                  latency, most)


def seconds(found: ByCost, tokens: int, decoding: int) -> float:
    """What the products of a pass take."""
    own = found.expectation.multiply(Kind.LAYER, LAYERS, tokens + decoding)
    return own + (found.expectation.multiply(Kind.HEAD, HEAD, decoding) if decoding else 0.0)


def test_while_weights_come_from_the_drive_a_prompt_is_multiplied_for_nothing() -> None:
    """Half the model off a drive of 1 GB/s: 0.6 s a pass, in which some 250 tokens are multiplied."""
    found = paced(1e9, 0.5)
    tokens = found.tokens(8)
    assert seconds(found, tokens, 8) <= 0.6 * 1.4 and seconds(found, tokens + 16, 8) > 0.6
    assert tokens > 150


def test_beside_others_a_resident_prompt_stretches_their_passes_a_little() -> None:
    found = paced(1e9, 0.0)
    tokens = found.tokens(8)
    assert tokens == FEWEST or seconds(found, tokens, 8) <= STRETCH * seconds(found, 0, 8)
    assert tokens < 64


def test_latency_is_what_others_are_promised() -> None:
    tight, loose = paced(1e9, 0.0, latency=0.15), paced(1e9, 0.0, latency=1.0)
    assert FEWEST <= tight.tokens(8) < loose.tokens(8)
    assert seconds(loose, loose.tokens(8), 8) <= 1.0


def test_alone_a_prompt_takes_passes_of_half_a_second_or_of_twice_the_reads() -> None:
    resident, streamed = paced(1e9, 0.0), paced(1e8, 0.5)
    assert seconds(resident, resident.tokens(0), 0) <= UNHURRIED_SECONDS < seconds(resident, resident.tokens(0) + 32, 0)
    assert streamed.tokens(0) > 4 * resident.tokens(0)
    reads = 0.5 * LAYERS / 1e8
    assert seconds(streamed, streamed.tokens(0), 0) <= BEYOND_READS * reads


def test_a_width_that_was_never_seen_is_not_believed_to_cost_nothing() -> None:
    """Only one row was measured: the first chunk must not be all of a long prompt; then passes show what it costs."""
    found = paced(1e9, 0.5, rows={1: 2e10})
    first = found.tokens(4)
    assert seconds(found, first, 4) <= 0.85
    for _ in range(12):
        tokens = found.tokens(4)
        took = {Kind.LAYER: Multiplied(tokens + 4, LAYERS, 0.05 + (tokens + 4) * 1e-3),
                Kind.HEAD: Multiplied(4, HEAD, 0.012)}
        found.expectation.saw(PassCost(tokens + 4, 0, LAYERS + HEAD, 0, 0.0, 0.0, took, 1.0), decode=False)
    # 0.6 s of reads, of which the head and what a pass takes anyway leave room for some 530 tokens.
    assert 400 <= found.tokens(4) <= 800


@PURE
@given(st.floats(1e6, 1e11), st.floats(0, 1), st.integers(0, 256), st.integers(1, 8192),
       st.none() | st.floats(1e-3, 100))
def test_there_is_always_a_token_and_never_more_than_may_be(read: float, streamed: float, decoding: int, most: int,
                                                            latency: float | None) -> None:
    found = paced(read, streamed, latency, most)
    tokens = found.tokens(decoding)
    assert 1 <= tokens <= most
    if tokens > FEWEST:
        beside = STRETCH * seconds(found, 0, decoding) if decoding else 0
        allowed = max(UNHURRIED_SECONDS, latency or 0, 2 * (LAYERS + HEAD) * streamed / read, beside)
        assert seconds(found, tokens, decoding) <= allowed * 1.01


@pytest.mark.parametrize(("columns", "tokens"), [(1, 4096), (70_000, 479), (1 << 30, FEWEST)])
def test_activations_are_bounded(columns: int, tokens: int) -> None:
    assert most_tokens(columns) == tokens


@PURE
@given(st.floats(1.0, 50.0), st.floats(1e7, 1e11), st.none() | st.floats(1e-3, 100))
def test_prompts_that_cost_more_than_was_foreseen_leave_passes_out_and_get_on(times: float, read: float,
                                                                             latency: float | None) -> None:
    """Those who decode have the gap they are promised, on average, or a prompt has every ninth pass alone."""
    pacing, overrun, decoding = paced(read, 0.5, latency), Overrun(), 8
    took: list[tuple[float, bool]] = []
    without = pacing.seconds(decoding, decoding)
    for _ in range(200):
        prompts = not overrun.due
        rows = decoding + (FEWEST if prompts else 0)
        passed = pacing.seconds(rows, decoding) * (times if prompts else 1.0)
        overrun.saw(passed, rows, decoding, pacing)
        took.append((passed, prompts))
    allowed = pacing.allowed(without)
    mean = sum(seconds for seconds, _ in took) / len(took)
    chunks = sum(prompts for _, prompts in took)
    if allowed > without:
        assert mean <= allowed * 1.02 + without * times / len(took) or chunks <= len(took) / LONGEST_REST
    assert chunks >= len(took) // (LONGEST_REST + 2)


def test_a_pass_that_was_meant_to_be_long_is_paid_for_to_the_end() -> None:
    """A 70B in a small box: beside 8 who decode, 8 rows more take twice as long, and 512 hardly longer than that."""
    measured = Measured(1e12, 5e9, {Kind.LAYER: {1: 1e14, 512: 1e13}, Kind.HEAD: {1: 1e14}},
                        HostRates({1: 1e10, 8: 1e10}, {1: 5e9, 8: 5e9}))
    assigned = Plan((), 0.0, assignments=(Assignment(8, frozenset(), LAYERS // 2),)).assigned
    passes = PassBytes({Kind.LAYER: LAYERS, Kind.HEAD: 0}, {}, None, {Kind.LAYER: LAYERS}, assigned)
    pacing, overrun = ByCost(Expectation(measured), passes, None, 4096), Overrun()
    without = pacing.seconds(8, 8)
    assert pacing.seconds(16, 8) > 1.9 * without and pacing.tokens(8) >= 1024
    told = ByCost(Expectation(measured), passes, 1.2 * without, 4096)
    assert told.tokens(8) == FEWEST, "whoever says a latency has it in every pass"
    took: list[float] = []
    prompts = 0
    while prompts < 4 or overrun.due:
        rows = 8 if overrun.due else 8 + pacing.tokens(8)
        prompts += rows > 8
        took.append(pacing.seconds(rows, 8))
        overrun.saw(took[-1], rows, 8, pacing)
    assert sum(took) / len(took) <= STRETCH * without * 1.001


def test_the_more_users_wait_for_a_user_who_decodes_the_longer_a_pass_may_be() -> None:
    resident = paced(1e12, 0.0)
    without = seconds(resident, 0, 8)
    counts = [resident.tokens(8, waiting) for waiting in (1.0, 4.0, 16.0)]
    assert counts[0] < counts[1] < counts[2]
    assert seconds(resident, counts[2], 8) <= (1 + 16 * (STRETCH - 1)) * without * 1.01


def test_prompts_wide_enough_to_leave_the_processor_behind_pay_for_the_whole_link() -> None:
    """Half the layers rest in RAM: up to 8 rows the processor multiplies 400 MB of them, of more none."""
    measured = Measured(1e9, 5e9, {Kind.LAYER: {1: 1e12, 512: 1e11}, Kind.HEAD: {1: 1e12}},
                        HostRates({1: 1e10, 8: 5e9}, {1: 4e9, 8: 4e9}))
    assigned = Plan((), 0.0, assignments=(Assignment(8, frozenset(), 400_000_000),)).assigned
    passes = PassBytes({Kind.LAYER: LAYERS, Kind.HEAD: 0}, {}, None, {Kind.LAYER: LAYERS // 2}, assigned)
    found = ByCost(Expectation(measured), passes, None, 4096)
    assert found.seconds(1, 1) == pytest.approx(max(100e6 / 4e9, 600e6 / 1e12 + 400e6 / 1e10))
    assert found.seconds(8, 1) == pytest.approx(400e6 / 5e9, rel=0.01)
    assert found.seconds(64, 1) == pytest.approx(500e6 / 5e9)
