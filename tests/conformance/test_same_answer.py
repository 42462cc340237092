"""Is the answer the same to the bit, whatever the budget, the path, the company, the cache and the engine's life?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvstreamd import ggml
from support.daemon import Collected, Daemon, running
from support.files import GEMMA3, SMOLLM2
from support.random_gguf import Options, write
from support.shapes import Shape
from support.vocabularies import real_vocabulary

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


# Of experts that lie in a file, at places off the page, more is read than they are.
BESIDE = 1.1


@pytest.fixture(scope="module", params=["smollm2", "gemma3", "experts"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model's file; of a family whose real ones are too large, a random one with a real vocabulary."""
    if request.param == "experts":
        shape = Shape("qwen3moe", 4, 256, 4, 2, 64, 256, 4096, experts=16, used=4)
        return write(tmp_path_factory.mktemp("experts") / "experts.gguf", shape,
                     Options(type=ggml.Q8_0, types={"*.ffn_down_exps.weight": ggml.F16},
                             vocabulary=real_vocabulary()))[0]
    return {"smollm2": SMOLLM2, "gemma3": GEMMA3}[request.param]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, real: Path) -> Iterator[Daemon]:
    memory = int(BESIDE * real.stat().st_size) + 108 * MIB
    with running(tmp_path_factory.mktemp("same"), "--memory", str(memory), "--model-directory",
                 str(real.parent)) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon, real: Path) -> list[list[int]]:
    """Each prompt alone, everything resident, nothing guessed."""
    name = real.stem
    daemon.load(name, int(BESIDE * real.stat().st_size))
    alone = [daemon.generate(name, prompt, max_tokens=TOKENS, speculation=False) for prompt in PROMPTS]
    daemon.unload(name)
    ids = ids_of(alone)
    assert len(ids) == len(PROMPTS) and any(len(own) == TOKENS for own in ids)
    return ids


@pytest.mark.parametrize("backend", ["uring", "pread"])
@pytest.mark.parametrize("budget", ["all", "half", "minimum"])
def test_budget_and_path_change_nothing(daemon: Daemon, real: Path, undisturbed: list[list[int]], backend: str,
                                        budget: str) -> None:
    from nvstream.v1.models_pb2 import GetRequest

    name, size = real.stem, real.stat().st_size
    facts = daemon.models.Get(GetRequest(model=name)).model.facts
    bytes_allowed = {"all": int(BESIDE * size), "half": facts.weight_bytes // 2,
                     "minimum": facts.minimum_budget}[budget]
    model = daemon.load(name, bytes_allowed, backend)
    try:
        assert model.placement.backend == backend
        assert (model.placement.streamed_bytes_per_pass == 0) == (budget == "all")
        assert ids_of(daemon.generate_all(name, PROMPTS, max_tokens=TOKENS)) == undisturbed
        engine = daemon.engine(name)
        assert engine.peak_weight_bytes <= bytes_allowed
    finally:
        daemon.unload(name)


def test_what_experts_cost_is_told(daemon: Daemon, real: Path) -> None:
    """Of the families here one has experts: with half of its weights as budget some are missed, and who caused it."""
    from nvstream.v1.models_pb2 import GetRequest

    name = real.stem
    daemon.load(name, daemon.models.Get(GetRequest(model=name)).model.facts.weight_bytes // 2)
    try:
        answers = daemon.generate_all(name, PROMPTS[:4], max_tokens=TOKENS, ignore_eos=True, speculation=False)
        usages = [answer.finished.usage for answer in answers]
        assert all(usage.caused_bytes for usage in usages)
        engine = daemon.engine(name)
        assert sum(usage.caused_bytes for usage in usages) <= engine.streamed_bytes
        layers = 4 if name == "experts" else 0
        assert len(engine.expert_hits) == len(engine.expert_misses) == layers
        assert not layers or (sum(engine.expert_misses) and sum(engine.expert_hits))
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


def test_a_packed_model_gives_the_same_answer(daemon: Daemon, real: Path, undisturbed: list[list[int]],
                                              tmp_path: Path) -> None:
    from nvstream.v1.models_pb2 import ImportRequest

    drives = [tmp_path / "drive-a", tmp_path / "drive-b"]
    request = ImportRequest(source=str(real), name="packed", directories=[str(drive) for drive in drives])
    events = list(daemon.models.Import(request))
    assert events[-1].imported.name == "packed"
    progress = [event.progress.bytes_done for event in events[:-1]]
    assert progress == sorted(progress) and progress[-1] == events[-2].progress.bytes_total
    on_drives = [sum(file.stat().st_size for file in drive.rglob("part-*.bin")) for drive in drives]
    assert min(on_drives) > sum(on_drives) // 4 and not list((daemon.socket.parent / "store").rglob("part-*"))
    daemon.load("packed", real.stat().st_size // 2)
    try:
        assert ids_of(daemon.generate_all("packed", PROMPTS, max_tokens=TOKENS)) == undisturbed
    finally:
        daemon.unload("packed")


SCHEMA = '{"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "size": {"type": "integer"}}, \
"required": ["colour", "size"], "additionalProperties": false}'
OPTIONS: dict[str, dict[str, object]] = {
    "greedy": {}, "drawn": {"temperature": 0.9, "seed": 7, "top_k": 50},
    "penalised": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "temperature": 0.7, "seed": 3},
    "a schema": {"json_schema": SCHEMA}, "log probabilities": {"logprobs": 3},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_guesses_change_nothing(smollm2: Daemon, name: str, options: str) -> None:
    """Texts that repeat themselves, alone and together, so that many guesses are right and many are not."""
    prompts = ["one two three four one two three four one two", "x = 1\ny = 2\nx = 1\ny = 2\nx =", PROMPTS[6]]
    wanted: dict[str, object] = {"max_tokens": 40, **OPTIONS[options]}
    plain = [smollm2.generate(name, prompt, speculation=False, **wanted) for prompt in prompts]
    alone = [smollm2.generate(name, prompt, **wanted) for prompt in prompts]
    together = smollm2.generate_all(name, prompts, **wanted)
    for found in (alone, together):
        assert [(each.ids, each.text) for each in found] == [(each.ids, each.text) for each in plain]
        assert [each.logprobs for each in found] == [each.logprobs for each in plain]
        assert [each.finished.reason for each in found] == [each.finished.reason for each in plain]
    # The second time the user's own first answers are guessed from, whatever penalties say of repetition.
    assert sum(each.finished.usage.accepted_tokens for each in (*alone, *together)) > 0
    assert not any(each.finished.usage.proposed_tokens for each in plain)
    status = smollm2.engine(name)
    assert status.proposed_tokens >= status.accepted_tokens > 0


def test_a_stream_with_guesses_survives_its_engine(smollm2: Daemon, name: str) -> None:
    prompt = "red green blue red green blue red green"
    undisturbed = smollm2.generate(name, prompt, max_tokens=60, ignore_eos=True, speculation=False)
    stream = smollm2.open(name, prompt, max_tokens=60, ignore_eos=True)
    result = Collected()
    while len(result.ids) < 8:
        result.take(next(stream))
    os.kill(smollm2.engine(name).pid, signal.SIGKILL)
    for event in stream:
        result.take(event)
    assert result.ids == undisturbed.ids and result.text == undisturbed.text
