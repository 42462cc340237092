"""Which token comes next, given the logits of a row?

Filters in the order users know from llama.cpp: penalties, top-k, top-p, min-p, temperature. Draws depend on seed and
position alone (a counter-based generator), so that a replayed request draws the same tokens again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvstreamd.errors import InvalidRequest, NvstreamError
from nvstreamd.kernels.arrays import Doubles, Floats

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0: greedy. top_k 0, top_p 1 and min_p 0: off.

    Penalties look at the last `penalty_window` tokens: the one for repetition at all of them, as llama.cpp's does,
    those for presence and frequency at the generated ones among them, as OpenAI's API defines them.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int = 0

    def check(self) -> None:
        """Raises InvalidRequest naming the field that is out of range."""
        ranges = (("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1), ("repetition_penalty", 1e-3, 1e3),
                  ("presence_penalty", -100, 100), ("frequency_penalty", -100, 100))
        for name, low, high in ranges:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidRequest(f"{name} is {value}", f"it must be from {low} to {high}",
                                     field=f"options.sampling.{name}")


def penalise(logits: Doubles, recent: Sequence[int], generated: Sequence[int], sampling: Sampling) -> None:
    """Repetition penalty (CTRL, section 4.1) on `recent`, presence and frequency on `generated` tokens, in place."""
    seen = np.fromiter(set(recent), dtype=np.int64)
    picked, factor = logits[seen], sampling.repetition_penalty
    logits[seen] = np.where(picked > 0, picked / factor, picked * factor)
    counts = Counter(generated)
    tokens = np.fromiter(counts, dtype=np.int64)
    times = np.fromiter(counts.values(), dtype=np.float64)
    logits[tokens] = logits[tokens] - times * sampling.frequency_penalty - sampling.presence_penalty


def likeliest(values: Doubles, count: int) -> Ids:
    """Indices of the `count` largest values, largest first (ties: lowest index first). Sorts no more than it must."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    bound = np.partition(values, len(values) - count)[-count]
    near = np.flatnonzero(values >= bound)
    picked: Ids = near[np.argsort(-values[near], kind="stable")][:count]
    return picked


def candidates(logits: Doubles, sampling: Sampling) -> tuple[Ids, Doubles]:
    """Token ids and probabilities that pass the filters, likeliest first (ties: lowest id first).

    A logit that is not finite is no candidate; at least one is finite.
    """
    finite = np.flatnonzero(np.isfinite(logits))
    order = finite[likeliest(logits[finite], sampling.top_k or len(finite))]
    probabilities = softmax(logits[order])
    keep = len(order)
    if sampling.top_p < 1:
        keep = min(keep, int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1)
    if sampling.min_p > 0:
        keep = min(keep, int((probabilities >= sampling.min_p * probabilities[0]).sum()))
    kept = order[:keep]
    # The largest becomes 0 before the division: a tiny temperature would make it infinite.
    return kept, softmax((logits[kept] - logits[kept[0]]) / sampling.temperature)


def softmax(values: Doubles) -> Doubles:
    """exp(values) / sum, without overflow."""
    powers = np.exp(values - values.max())
    normalised: Doubles = powers / powers.sum()
    return normalised


def uniform(seed: int, position: int) -> float:
    """The draw from [0, 1) of this seed at this position of the sequence (Philox 4x64)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def choose(row: Floats, tokens: Sequence[int], sampling: Sampling,
           allowed: npt.NDArray[np.bool_] | None = None, prompt_length: int = 0) -> int:
    """The next token after `tokens`, of which the first `prompt_length` are the prompt's.

    `row` [vocabulary] float32 logits; `allowed` masks by a constraint.

    Raises NvstreamError when no token is left to choose.
    """
    penalties = (sampling.repetition_penalty != 1, sampling.presence_penalty != 0, sampling.frequency_penalty != 0)
    if sampling.temperature == 0 and allowed is None and not any(penalties):
        # argmax finds a NaN or an infinity where there is one: those take the long way.
        best = int(row.argmax())
        if np.isfinite(row[best]):
            return best
    logits: Doubles = row.astype(np.float64)
    if any(penalties) and sampling.penalty_window:
        start = max(0, len(tokens) - sampling.penalty_window)
        penalise(logits, tokens[start:], tokens[max(start, prompt_length) :], sampling)
    if allowed is not None:
        logits[: len(allowed)][~allowed] = -np.inf
        # An embedding may have more rows than the tokenizer has tokens: no text has those.
        logits[len(allowed) :] = -np.inf
    if not np.isfinite(logits).any():
        raise _nothing_left(allowed)
    if sampling.temperature == 0:
        return int(np.where(np.isfinite(logits), logits, -np.inf).argmax())
    ids, probabilities = candidates(logits, sampling)
    drawn = int(np.searchsorted(np.cumsum(probabilities), uniform(sampling.seed, len(tokens)), side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def _nothing_left(allowed: npt.NDArray[np.bool_] | None) -> NvstreamError:
    if allowed is None or allowed.any():
        return NvstreamError("no token has a finite logit", "the model's weights are not sane")
    return InvalidRequest("the JSON schema allows no token here", "the tokenizer cannot write what it asks for",
                          field="options.json_schema")


def logprobs(row: Floats, chosen: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The chosen token's log probability and the `count` likeliest (id, log probability), before any filter."""
    logits = row.astype(np.float64)
    peak = logits.max()
    values = logits - (peak + math.log(np.exp(logits - peak).sum()))
    top = likeliest(values, count)
    return float(values[chosen]), [(int(token), float(values[token])) for token in top]
