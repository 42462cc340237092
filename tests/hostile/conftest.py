"""Which model do tests break the engine of, and what must be true of it after each of them?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostile.faulty import SECRET, ids_of
from nvstream.v1 import models_pb2 as models
from support.daemon import DEADLINE
from support.random_gguf import Options, write
from support.sabotage import Sabotaged, sabotaged
from support.shapes import tiny


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sabotaged]:
    """A daemon with a small model whose layers are streamed. Engines may be replaced as often as tests want."""
    directory = tmp_path_factory.mktemp("faults")
    write(directory / "m.gguf", tiny(layers=4), Options())
    config = directory / "nvstreamd.toml"
    config.write_text(f'model_directories = ["{directory}"]\nengine_restarts = 100\n')
    with sabotaged(directory, "--config", str(config)) as made:
        facts = made.daemon.models.Get(models.GetRequest(model="m"), timeout=DEADLINE).model.facts
        made.daemon.load("m", facts.minimum_budget, kv_budget=8 << 20)
        assert made.daemon.engine("m").model.placement.streamed_bytes_per_pass
        yield made


@pytest.fixture(scope="module")
def expected(served: Sabotaged) -> list[int]:
    """What the model says after PROMPT."""
    return ids_of(served.daemon)


@pytest.fixture
def all_is_well_afterwards(served: Sabotaged, expected: list[int]) -> Iterator[None]:
    """Every test leaves an engine that gives the same tokens and takes texts."""
    before = served.daemon.log.stat().st_size
    yield
    assert ids_of(served.daemon) == expected
    assert served.daemon.generate("m", "he", max_tokens=1).finished
    log = served.daemon.log.read_bytes()[before:].decode()
    assert SECRET not in log and "Traceback" not in log and all(len(line) < 2100 for line in log.splitlines())
