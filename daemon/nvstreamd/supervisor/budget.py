"""How much of the daemon's memory may a model have, beside those that are loaded?

`memory` is the ceiling of weights and KV caches of all models together. It was that of the weights alone: it still is
for a configuration that shows that it was written then, and models have their KV caches beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.config import Config
from nvstreamd.errors import BudgetTooSmall
from nvstreamd.memory import KV_UNTOLD
from nvstreamd.sizes import apart, mib

WRITTEN_BEFORE = ("{why}: `memory` is taken as the ceiling of the weights alone, as before it counted KV caches: "
                  "write it larger by {more}{other}")


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that a model has: for its weights, and for its KV cache."""

    weights: int
    kv: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes that a model may have in all; of them for weights, and for the KV cache: 0 where its engine divides."""

    memory: int
    budget: int
    kv_budget: int


def allowance(config: Config, taken: Sequence[Taken], budget: int | None, kv_budget: int | None) -> Allowance:
    """The bytes for one more model; None is for nobody having said. Raises BudgetTooSmall."""
    if written_before(config) is not None:
        left = config.memory - sum(each.weights for each in taken)
        _check(budget or 1, left)
        kv = kv_budget or config.kv_memory or KV_UNTOLD
        return Allowance((budget or left) + kv, budget or 0, kv)
    left = config.memory - sum(each.weights + each.kv for each in taken)
    # What a budget leaves within `memory` is for the engine to find: the model may have less than its budget.
    _check((budget or 1) + (kv_budget or 0), left)
    told = left if budget is None else min(left, budget + (kv_budget or KV_UNTOLD))
    return Allowance(told, budget or 0, kv_budget or 0)


def _check(asked: int, left: int) -> None:
    if asked > left:
        wanted, there = apart(asked, max(0, left))
        raise BudgetTooSmall(f"{wanted} are asked for, {there} of `memory` are left",
                             "unload a model, ask for less, or raise `memory` in the configuration", field="budget")


def written_before(config: Config) -> str | None:
    """The words for an administrator whose configuration counts on KV caches beside `memory`; None otherwise."""
    each = config.kv_memory or KV_UNTOLD
    more = mib(sum(model.kv_budget or each for model in config.models) or each)
    if config.kv_memory is not None:
        return WRITTEN_BEFORE.format(why="`kv_memory` is set", more=more, other=" and leave `kv_memory` away")
    weights = sum(model.budget or 0 for model in config.models)
    if weights <= config.memory < weights + sum(model.kv_budget or 1 for model in config.models if model.budget):
        return WRITTEN_BEFORE.format(why="the models' budgets leave nothing for KV caches", more=more, other="")
    return None
