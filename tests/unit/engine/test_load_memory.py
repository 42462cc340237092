"""Is a load that does not fit refused before anything is taken, saying what would fit?"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvstreamd.engine.describe import ModelFile
from nvstreamd.engine.load import check_memory, sizes_of
from nvstreamd.errors import MEMORY, NotEnoughMemory
from nvstreamd.memory import Bound
from nvstreamd.weights.placement import minimum_budget
from support.random_gguf import tiny
from unit.weights.models import make, model_at

MIB = 1 << 20


def test_a_refusal_says_what_there_is_and_which_budget_fits(tmp_path: Path) -> None:
    with model_at(make(tmp_path / "model.gguf", tiny(width=256, layers=3))) as model:
        _refuse(model)


def _refuse(model: ModelFile) -> None:
    least = minimum_budget(sizes_of(model), model.manifest.constants.nbytes)
    bound = Bound("control group /x", 300 * MIB, least + 10 * MIB)
    check_memory(model, least, 10 * MIB, bound)
    check_memory(model, 1 << 50, 1 << 50, None)
    with pytest.raises(NotEnoughMemory) as refused:
        check_memory(model, least + MIB, 10 * MIB, bound)
    assert refused.value.field == MEMORY and "control group /x" in str(refused.value)
    assert "a budget of at most" in refused.value.hint and "300MiB" in str(refused.value)
    with pytest.raises(NotEnoughMemory) as hopeless:
        check_memory(model, least, 20 * MIB, bound)
    assert "the least that works" in hopeless.value.hint
