"""Do the benches of a card run, and give a rate for each number of users and each prompt? On fibers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import gpu_beside
from bench.gpu_resident import open_ours, rates
from nvstreamd import ggml
from support.fiber_gpu import FiberCompiler, FiberDriver
from support.random_gguf import Options, write
from support.shapes import tiny

# Seconds each, for what no user runs: `make test` has them.
pytestmark = pytest.mark.thorough


def test_every_rate_is_there(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "model.gguf", tiny("llama"), Options(type=ggml.Q4_0))
    with ExitStack() as stack:
        ours = open_ours(path, FiberDriver(8 << 30), FiberCompiler(), stack)
        found = rates(ours, None, ((1, 4), (3, 3)), (40,), rounds=1)
    assert set(found) == {1, 3, 40} and all(own > 0 and theirs == 0 for own, theirs in found.values())


@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_a_model_beside_a_card_has_every_rate_and_what_was_expected(tmp_path: Path, family: str) -> None:
    shape, kv = tiny(family, layers=8), 4 << 20
    (path,) = write(tmp_path / "model.gguf", shape, Options(type=ggml.Q4_0))
    case = gpu_beside.Case(shape, kv + path.stat().st_size // 2, kv, "default", ((1, 3), (2, 3)), 9,
                           {1: "one", 2: "two", -1: "prompt"}, settling=3)
    ratios, plain = gpu_beside.measure_case(path, case, FiberDriver(), FiberCompiler(), rounds=1)
    rates_said = [line for line in plain if line.endswith("tokens/s")]
    assert len(rates_said) == 3 and all(plain[line].startswith("ours ") for line in rates_said)
    # Of experts it is not known which a pass needs; without a peer there is nothing to be compared with.
    assert set(ratios) == ({"tiered_pass_over_bound", "prediction_error"} if family == "llama" else set())
