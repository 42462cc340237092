"""Is the next token drawn from the distribution that the options describe, and the same one again?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvstreamd.engine.sampling import Sampling, candidates, choose, likeliest, logprobs, penalise, softmax, uniform
from nvstreamd.errors import InvalidRequest, NvstreamError

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
GREEDY = replace(PLAIN, temperature=0.0)
# Probabilities 0.5, 0.25, 0.125, 0.125 of tokens 2, 0, 1, 3.
LOGITS = np.log(np.array([0.25, 0.125, 0.5, 0.125])).astype(np.float32)

fixed = settings(derandomize=True, deadline=None)
rows = hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-8, 8).map(float))


def kept(sampling: Sampling, logits: npt.NDArray[np.float32] = LOGITS) -> dict[int, float]:
    ids, probabilities = candidates(logits.astype(np.float64), sampling)
    return {int(token): round(float(p), 6) for token, p in zip(ids, probabilities, strict=True)}


def test_without_filters_the_distribution_is_the_softmax() -> None:
    assert kept(PLAIN) == {2: 0.5, 0: 0.25, 1: 0.125, 3: 0.125}


def test_temperature_divides_the_logits() -> None:
    # Temperature 0.5 squares probabilities: 16, 4, 1 and 1 of 22.
    assert kept(replace(PLAIN, temperature=0.5)) == {2: round(16 / 22, 6), 0: round(4 / 22, 6), 1: round(1 / 22, 6),
                                                     3: round(1 / 22, 6)}


def test_top_k_keeps_the_k_likeliest_and_the_lower_id_of_equals() -> None:
    assert kept(replace(PLAIN, top_k=3)) == {2: round(4 / 7, 6), 0: round(2 / 7, 6), 1: round(1 / 7, 6)}
    assert kept(replace(PLAIN, top_k=1)) == {2: 1.0}
    assert kept(replace(PLAIN, top_k=99)) == kept(PLAIN)


@pytest.mark.parametrize(("top_p", "tokens"), [(0.0, [2]), (0.49, [2]), (0.51, [2, 0]), (0.76, [2, 0, 1]),
                                               (0.9, [2, 0, 1, 3]), (1.0, [2, 0, 1, 3])])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float, tokens: list[int]) -> None:
    assert list(kept(replace(PLAIN, top_p=top_p))) == tokens


@pytest.mark.parametrize(("min_p", "tokens"), [(0.0, [2, 0, 1, 3]), (0.24, [2, 0, 1, 3]), (0.26, [2, 0]),
                                               (0.51, [2]), (1.0, [2])])
def test_min_p_counts_from_the_likeliest(min_p: float, tokens: list[int]) -> None:
    assert list(kept(replace(PLAIN, min_p=min_p))) == tokens


def test_temperature_comes_after_the_filters() -> None:
    hot = replace(PLAIN, temperature=100.0, top_p=0.51)
    assert list(kept(hot)) == [2, 0]


def test_top_p_counts_what_top_k_left() -> None:
    # Of the two that top_k keeps the first has 2/3.
    assert list(kept(replace(PLAIN, top_k=2, top_p=0.6))) == [2]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([3.0, -2.0, 1.0, 0.0])
    penalise(logits, [0, 1, 3, 0], [0, 1], Sampling(repetition_penalty=2.0))
    assert logits.tolist() == [1.5, -4.0, 1.0, 0.0]


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits = np.zeros(4)
    penalise(logits, [3, 1, 1, 1, 2], [1, 1, 1, 2], Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    assert logits.tolist() == [0.0, -1.25, -0.75, 0.0]


def test_penalties_look_no_further_than_their_window() -> None:
    row = np.array([1.0, 0.9, 0.0], dtype=np.float32)
    penalised = replace(GREEDY, presence_penalty=5.0, penalty_window=2)
    assert choose(row, [1, 0, 2], penalised) == 1
    assert choose(row, [0, 1, 2], penalised) == 0
    assert choose(row, [0, 0, 0], replace(penalised, penalty_window=0)) == 0


def test_presence_and_frequency_leave_the_prompt_alone() -> None:
    """OpenAI's definition: a word of the question, or a mark of the template, is no repetition in the answer."""
    row = np.array([1.0, 0.9, 0.0], dtype=np.float32)
    for penalised in (replace(GREEDY, presence_penalty=5.0), replace(GREEDY, frequency_penalty=5.0)):
        assert choose(row, [0, 0, 2], penalised, prompt_length=3) == 0
        assert choose(row, [0, 0, 2], penalised, prompt_length=1) == 1
        assert choose(row, [0, 0, 2], replace(penalised, penalty_window=1), prompt_length=1) == 0
    assert choose(row, [0, 0, 2], replace(GREEDY, repetition_penalty=5.0), prompt_length=3) == 1


def test_a_replayed_request_is_penalised_as_the_undisturbed_one() -> None:
    """The tokens that its client has already come behind the prompt, which is as long as it was."""
    sampling = replace(PLAIN, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.1, seed=5)
    tokens = [2, 0, 2]
    for _ in range(50):
        tokens.append(choose(LOGITS, tokens, sampling, prompt_length=3))
    again = [choose(LOGITS, tokens[:n], sampling, prompt_length=3) for n in range(3, len(tokens))]
    assert again == tokens[3:]
    assert again != [choose(LOGITS, tokens[:n], sampling) for n in range(3, len(tokens))]


def test_greedy_takes_the_largest_and_the_lowest_id_of_equals() -> None:
    assert choose(np.array([0, 7, 7, 1], dtype=np.float32), [0], GREEDY) == 1


@fixed
@given(seed=st.integers(0, 2**64 - 1), position=st.integers(1, 1 << 24))
def test_a_token_is_drawn_by_the_inverse_of_the_cumulated_distribution(seed: int, position: int) -> None:
    u = uniform(seed, position)
    assert 0 <= u < 1
    ids, probabilities = candidates(LOGITS.astype(np.float64), PLAIN)
    expected, total = ids[-1], 0.0
    for token, p in zip(ids, probabilities, strict=True):
        total += float(p)
        if u < total:
            expected = token
            break
    assert choose(LOGITS, range(position), replace(PLAIN, seed=seed)) == expected


def test_draws_are_spread_evenly_over_positions_and_over_seeds() -> None:
    for draws in ([uniform(7, n) for n in range(4000)], [uniform(n, 7) for n in range(4000)]):
        histogram = np.histogram(draws, bins=10, range=(0, 1))[0]
        assert abs(histogram - 400).max() < 100


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    sampling = replace(PLAIN, seed=2**64 - 1)
    first = [choose(LOGITS, [9] * n, sampling) for n in range(1, 60)]
    assert [choose(LOGITS, [3] * n, sampling) for n in range(1, 60)] == first
    assert first != [choose(LOGITS, [9] * n, replace(sampling, seed=0)) for n in range(1, 60)]


def test_draws_never_change_between_releases() -> None:
    # A crashed engine is replaced in mid-stream, perhaps by a newer one: these figures are a promise.
    assert [round(uniform(seed, position), 12) for seed, position in ((0, 1), (42, 17), (2**64 - 1, 1 << 20))] == [
        0.502379604274, 0.443979756341, 0.63488998598]


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, Sampling(top_k=1), Sampling(top_p=0.0)])
def test_a_mask_reaches_tokens_that_the_filters_alone_would_drop(sampling: Sampling) -> None:
    assert choose(LOGITS, [0], sampling, np.array([False, True, False, False])) == 1


def test_a_mask_shorter_than_the_row_forbids_the_rest() -> None:
    assert choose(np.array([1, 0, 9], dtype=np.float32), [0], GREEDY, np.array([False, True])) == 1


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, Sampling()])
def test_a_mask_that_allows_nothing_is_an_error_of_the_schema(sampling: Sampling) -> None:
    with pytest.raises(InvalidRequest) as error:
        choose(LOGITS, [0], sampling, np.zeros(4, dtype=bool))
    assert error.value.field == "options.json_schema"


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, Sampling(), Sampling(top_k=2)])
def test_what_is_not_finite_is_never_chosen(sampling: Sampling) -> None:
    row = np.array([np.nan, -np.inf, 0.5, np.inf, np.nan], dtype=np.float32)
    assert choose(row, [0], sampling) == 2
    with pytest.raises(NvstreamError):
        choose(np.array([np.nan, -np.inf], dtype=np.float32), [0], sampling)


def test_a_tiny_temperature_is_as_good_as_greedy() -> None:
    row = np.array([-300.0, 299.0, 300.0], dtype=np.float32)
    for temperature in (1e-30, 5e-324):
        with np.errstate(all="raise", under="ignore", over="ignore"):
            assert choose(row, [0], replace(PLAIN, temperature=temperature)) == 2


@fixed
@given(row=rows, count=st.integers(0, 45))
def test_partial_selection_equals_a_full_stable_sort(row: npt.NDArray[np.float32], count: int) -> None:
    values = row.astype(np.float64)
    assert likeliest(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()


@fixed
@given(row=rows, count=st.integers(0, 45), data=st.data())
def test_logprobs_are_the_log_softmax(row: npt.NDArray[np.float32], count: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(row) - 1))
    own, top = logprobs(row, chosen, count)
    expected = np.log(softmax(row.astype(np.float64)))
    assert math.isclose(own, expected[chosen], abs_tol=1e-9)
    assert len(top) == min(count, len(row))
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    np.testing.assert_allclose([p for _, p in top], expected[[token for token, _ in top]], atol=1e-9)


@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                                   "frequency_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e9])
def test_a_value_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as error:
        Sampling(**{field: value}).check()  # type: ignore[arg-type]
    assert error.value.field == f"options.sampling.{field}"
