"""Does the bench of a model in VRAM run, and give a rate for each number of users and each prompt? On fibers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.gpu_resident import open_ours, rates
from nvstreamd import ggml
from support.fiber_gpu import FiberCompiler, FiberDriver
from support.random_gguf import Options, write
from support.shapes import tiny


def test_every_rate_is_there(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "model.gguf", tiny("llama"), Options(type=ggml.Q4_0))
    with ExitStack() as stack:
        ours = open_ours(path, FiberDriver(8 << 30), FiberCompiler(), stack)
        found = rates(ours, None, ((1, 4), (3, 3)), (40,), rounds=1)
    assert set(found) == {1, 3, 40} and all(own > 0 and theirs == 0 for own, theirs in found.values())
