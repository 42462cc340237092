"""Is the answer the same to the bit, whatever the budget, the path, the company, the cache and the engine's life?"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.daemon import Collected, Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20
TOKENS = 12
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n",
    "Once upon a time, in a village by the sea, there lived a fisherman who",
    "1 2 3 4 5 6 7",
    "Die Hauptstadt von Deutschland ist",
    "Q: What is the boiling point of water?\nA:",
    "In the beginning " * 30,
    "x",
)

pytestmark = pytest.mark.slow


def ids_of(answers: list[Collected]) -> list[list[int]]:
    return [answer.ids for answer in answers if answer.finished is not None]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    with running(tmp_path_factory.mktemp("same"), "--memory", "200MiB", "--model-directory",
                 str(SMOLLM2.parent)) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon, name: str) -> list[list[int]]:
    """Each prompt alone, everything resident."""
    daemon.load(name, 200 * MIB)
    alone = [daemon.generate(name, prompt, max_tokens=TOKENS) for prompt in PROMPTS]
    daemon.unload(name)
    ids = ids_of(alone)
    assert len(ids) == len(PROMPTS) and any(len(own) == TOKENS for own in ids)
    return ids


@pytest.mark.parametrize("backend", ["uring", "pread"])
@pytest.mark.parametrize("budget", ["all", "half", "minimum"])
def test_budget_and_path_change_nothing(daemon: Daemon, name: str, undisturbed: list[list[int]], backend: str,
                                        budget: str) -> None:
    from nvstream.v1.models_pb2 import GetRequest

    facts = daemon.models.Get(GetRequest(model=name)).model.facts
    bytes_allowed = {"all": 200 * MIB, "half": facts.weight_bytes // 2, "minimum": facts.minimum_budget}[budget]
    model = daemon.load(name, bytes_allowed, backend)
    try:
        assert model.placement.backend == backend
        assert (model.placement.streamed_bytes_per_pass == 0) == (budget == "all")
        assert ids_of(daemon.generate_all(name, PROMPTS, max_tokens=TOKENS)) == undisturbed
        engine = daemon.engine(name)
        assert engine.peak_weight_bytes <= bytes_allowed
    finally:
        daemon.unload(name)


def test_a_cached_prefix_changes_nothing(smollm2: Daemon, name: str) -> None:
    prompt = PROMPTS[6]
    first = smollm2.generate(name, prompt, max_tokens=TOKENS)
    again = smollm2.generate(name, prompt, max_tokens=TOKENS)
    assert again.finished.usage.cached_tokens > first.finished.usage.prompt_tokens // 2
    assert again.ids == first.ids and again.text == first.text


def test_eight_streams_survive_the_death_of_their_engine(smollm2: Daemon, name: str) -> None:
    undisturbed = smollm2.generate_all(name, PROMPTS, max_tokens=TOKENS)
    before = smollm2.engine(name)
    streams = [smollm2.open(name, prompt, max_tokens=TOKENS) for prompt in PROMPTS]
    results = [Collected() for _ in streams]
    # Every stream has begun, and at least one is in mid-answer, when the engine dies.
    for stream, result in zip(streams, results, strict=True):
        result.take(next(stream))
    while not results[0].ids:
        results[0].take(next(streams[0]))
    os.kill(before.pid, signal.SIGKILL)
    for stream, result in zip(streams, results, strict=True):
        for event in stream:
            result.take(event)
    after = smollm2.engine(name)
    assert after.pid != before.pid and after.restarts == before.restarts + 1
    assert [(r.ids, r.text) for r in results] == [(u.ids, u.text) for u in undisturbed]


def test_a_seeded_stream_goes_on_with_the_same_draws(smollm2: Daemon, name: str) -> None:
    options = {"max_tokens": TOKENS, "temperature": 1.0, "seed": 42, "top_k": 0}
    undisturbed = smollm2.generate(name, PROMPTS[2], **options)
    stream = smollm2.open(name, PROMPTS[2], **options)
    result = Collected()
    while not result.ids:
        result.take(next(stream))
    os.kill(smollm2.engine(name).pid, signal.SIGKILL)
    for event in stream:
        result.take(event)
    assert result.ids == undisturbed.ids


def test_a_packed_model_gives_the_same_answer(daemon: Daemon, name: str, undisturbed: list[list[int]],
                                              tmp_path: Path) -> None:
    from nvstream.v1.models_pb2 import ImportRequest

    drives = [tmp_path / "drive-a", tmp_path / "drive-b"]
    request = ImportRequest(source=str(SMOLLM2), name="packed", directories=[str(drive) for drive in drives])
    events = list(daemon.models.Import(request))
    assert events[-1].imported.name == "packed"
    progress = [event.progress.bytes_done for event in events[:-1]]
    assert progress == sorted(progress) and progress[-1] == events[-2].progress.bytes_total
    on_drives = [sum(file.stat().st_size for file in drive.rglob("part-*.bin")) for drive in drives]
    assert min(on_drives) > 40 * MIB and not list((daemon.socket.parent / "store").rglob("part-*"))
    daemon.load("packed", 40 * MIB)
    try:
        assert ids_of(daemon.generate_all("packed", PROMPTS, max_tokens=TOKENS)) == undisturbed
    finally:
        daemon.unload("packed")
