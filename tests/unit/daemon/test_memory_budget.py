"""Does one number hold the memory of all models, and does a configuration of before it held KV caches still work?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvstreamd.config import Config, load_config
from nvstreamd.errors import BudgetTooSmall
from nvstreamd.supervisor.budget import Allowance, Taken, allowance, written_before

MIB = 1 << 20


def config(**values: Any) -> Config:
    return load_config(None, {"memory": 1000 * MIB, **values})


def model(**values: Any) -> dict[str, Any]:
    return {"name": "m", "path": Path("/m.gguf"), **values}


def test_what_a_model_has_is_gone_for_the_next_weights_and_kv_cache_alike() -> None:
    taken = [Taken(300 * MIB, 100 * MIB), Taken(100 * MIB, 50 * MIB)]
    assert allowance(config(), taken, None, None) == Allowance(450 * MIB, 0, 0)
    assert allowance(config(), taken, 60 * MIB, None) == Allowance(316 * MIB, 60 * MIB, 0)
    assert allowance(config(), taken, 400 * MIB, None) == Allowance(450 * MIB, 400 * MIB, 0)
    assert allowance(config(), taken, 60 * MIB, 20 * MIB) == Allowance(80 * MIB, 60 * MIB, 20 * MIB)
    assert allowance(config(), taken, None, 20 * MIB) == Allowance(450 * MIB, 0, 20 * MIB)


@pytest.mark.parametrize(("budget", "kv_budget"), [(451, None), (400, 51), (None, 450), (1 << 30, None)])
def test_what_is_not_left_is_refused(budget: int | None, kv_budget: int | None) -> None:
    with pytest.raises(BudgetTooSmall, match="of `memory` are left"):
        allowance(config(), [Taken(450 * MIB, 100 * MIB)], budget and budget * MIB, kv_budget and kv_budget * MIB)


def test_a_configuration_with_kv_memory_means_what_it_meant_and_is_told() -> None:
    before = config(kv_memory=200 * MIB, models=[model(budget=1000 * MIB)])
    assert allowance(before, [], 1000 * MIB, None) == Allowance(1200 * MIB, 1000 * MIB, 200 * MIB)
    assert allowance(before, [Taken(600 * MIB, 200 * MIB)], None, 50 * MIB) == Allowance(450 * MIB, 0, 50 * MIB)
    with pytest.raises(BudgetTooSmall):
        allowance(before, [Taken(600 * MIB, 200 * MIB)], 401 * MIB, None)
    assert "200MiB" in str(written_before(before))


def test_budgets_that_fill_the_memory_were_written_before_and_are_served_as_then() -> None:
    full = config(models=[model(budget=700 * MIB, kv_budget=30 * MIB), model(name="n", budget=300 * MIB)])
    assert allowance(full, [Taken(700 * MIB, 30 * MIB)], 300 * MIB, None) == Allowance(
        556 * MIB, 300 * MIB, 256 * MIB)
    assert "286MiB" in str(written_before(full))


def test_other_configurations_are_told_nothing() -> None:
    for models in ([], [model()], [model(budget=900 * MIB)], [model(budget=800 * MIB, kv_budget=200 * MIB)]):
        assert written_before(config(models=models)) is None
