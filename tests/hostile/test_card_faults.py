"""Does a model go on, with the same tokens, when its card fails, and without the card when it fails again?

The card is one of fibers in a real engine (support.saboteur): its kernels are ours, its driver can be made to fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostile.faulty import FIND, PROMPT, await_another, ids_of
from nvstream.v1.models_pb2 import Placement
from nvstreamd import ggml
from nvstreamd.kernels.gpu_units import OF_ROWS, of_type
from support.daemon import Collected, Daemon
from support.fiber_gpu import FiberCompiler
from support.random_gguf import Options, write
from support.sabotage import Sabotaged, sabotaged
from support.shapes import tiny

MIB = 1 << 20
# Enough for an engine to fail before the last of them.
TOKENS = 200
# The driver's own words, as cupy gives them on.
FAIL = FIND + """
from nvdma.errors import GpuFailed
driver = loop.loaded.runner.device.card.driver
def fail(*given):
    raise GpuFailed("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")
for name in ("launch", "run_graph", "copy", "happened", "free", "unregister"):
    setattr(driver, name, fail)
"""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """An engine behind its walls is not to be the first that compiles."""
    for unit in (OF_ROWS, of_type(ggml.Q8_0)):
        FiberCompiler().compile(unit)


@contextmanager
def on_card(directory: Path, vram: str, kernels: str = '["gpu", "cpu"]') -> Iterator[Sabotaged]:
    write(directory / "m.gguf", tiny(layers=4), Options(type=ggml.Q8_0))
    config = directory / "nvstreamd.toml"
    config.write_text(f'model_directories = ["{directory}"]\nkernels = {kernels}\nvram = "{vram}"\n')
    with sabotaged(directory, "--config", str(config), card=True) as made:
        made.daemon.load("m", 32 * MIB, kv_budget=2 * MIB)
        yield made


def answered_while(served: Sabotaged, order: str) -> list[int]:
    """An answer in the middle of which an engine obeys an order."""
    found = Collected()
    for event in served.daemon.open("m", PROMPT, max_tokens=TOKENS, ignore_eos=True):
        found.take(event)
        if order and found.ids:
            served.run(order)
            order = ""
    assert found.finished
    return found.ids


def placement(daemon: Daemon) -> Placement:
    return daemon.engine("m").model.placement


@pytest.mark.parametrize("vram", [
    pytest.param("64MiB", id="all in VRAM"), pytest.param("2500KiB", id="the rest in RAM", marks=pytest.mark.slow)])
def test_a_card_that_fails_costs_an_engine_and_one_that_fails_again_is_done_without(tmp_path: Path, vram: str) -> None:
    with on_card(tmp_path, vram, '["cpu"]') as on_cpu:
        wanted = ids_of(on_cpu.daemon, TOKENS)
        assert "fibers" not in placement(on_cpu.daemon).kernel
    with on_card(tmp_path, vram) as served:
        daemon = served.daemon
        assert "fibers" in placement(daemon).kernel and placement(daemon).vram
        assert ids_of(daemon, TOKENS) == wanted
        for turn in range(2):
            before = daemon.engine("m")
            assert answered_while(served, FAIL) == wanted
            await_another(daemon, before)
            assert ("fibers" in placement(daemon).kernel) == (turn == 0)
        notes = [note for note in placement(daemon).notes if "given up" in note]
        assert len(notes) == 1 and "ILLEGAL_ADDRESS" in notes[0] and placement(daemon).vram == 0
        assert ids_of(daemon, TOKENS) == wanted and "Traceback" not in daemon.log.read_text()
