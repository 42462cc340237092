"""Are a sequence's logits the same to the bit whatever the batch, the chunks, the threads and the pages?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.kv_cache import GroupPages, KvCache
from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.load import Loaded, sizes_of
from nvstreamd.engine.pacing import Fixed
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.pieces import Kind
from nvstreamd.weights.packed.files import open_all
from support.our_logits import first_pages, loaded, sequence
from support.random_gguf import Options, write
from support.shapes import tiny

# Over two pages, and no multiple of a tile.
LENGTH = 77
TYPES = {"llama": ggml.Q4_0, "qwen3": ggml.Q8_0, "gemma3": ggml.Q5_0, "qwen3moe": ggml.Q8_0}


def prompt(seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


@pytest.fixture(scope="module", params=sorted(TYPES))
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "model.gguf"
    write(path, tiny(request.param, layers=4), Options(type=TYPES[request.param]))
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> Iterator[Loaded]:
    with loaded([file]) as found:
        yield found


def last_logits(model: Loaded, tokens: Sequence[int], chunks: Sequence[int], pages: Sequence[int],
                company: Sequence[Sequence[int]] = ()) -> Floats:
    """Logits of the last token, computed in these chunks while each of `company` is computed beside it."""
    pages_each = len(first_pages(LENGTH))
    own = sequence(model, tokens, pages)
    others = [sequence(model, ids, first_pages(len(ids), (number + 1) * pages_each))
              for number, ids in enumerate(company)]
    begin = 0
    for count in chunks:
        work = [Work(other, begin, min(count, len(other.tokens) - begin))
                for other in others if begin < len(other.tokens)]
        work.insert(len(work) // 2, Work(own, begin, count))
        logits = model.runner.run(work).scores
        begin += count
    assert begin == len(tokens)
    samples = [item for item in work if item.samples]
    return logits[[item.request for item in samples].index(own)]


@pytest.fixture(scope="module")
def alone(model: Loaded) -> Floats:
    """The whole prompt in one pass, nobody beside it."""
    return last_logits(model, prompt(1), [LENGTH], first_pages(LENGTH))


def test_seven_others_in_the_batch_change_nothing(model: Loaded, alone: Floats) -> None:
    company = [prompt(number + 2, 40 + 7 * number) for number in range(5)] + [prompt(8), prompt(9)]
    assert np.array_equal(last_logits(model, prompt(1), [LENGTH], first_pages(LENGTH), company), alone)
    assert np.array_equal(last_logits(model, prompt(1), [30, 30, 17], first_pages(LENGTH), company), alone)


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [8] * 9 + [5], [64, 13], [13, 64], [76, 1], [3, 31, 9, 34]])
def test_the_cut_of_a_prompt_changes_nothing(model: Loaded, alone: Floats, chunks: list[int]) -> None:
    assert np.array_equal(last_logits(model, prompt(1), chunks, first_pages(LENGTH)), alone)


@pytest.mark.parametrize("pages", [[2, 1, 0], [40, 7, 23]])
def test_the_order_of_pages_in_memory_changes_nothing(model: Loaded, alone: Floats, pages: list[int]) -> None:
    assert np.array_equal(last_logits(model, prompt(1), [50, 27], pages), alone)


def test_what_another_sequence_left_in_a_page_changes_nothing(model: Loaded, alone: Floats) -> None:
    last_logits(model, prompt(30, 3 * PAGE_TOKENS), [3 * PAGE_TOKENS], [5, 6, 7])
    assert np.array_equal(last_logits(model, prompt(1), [LENGTH], [7, 5, 6]), alone)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(file: Path, alone: Floats, threads: int) -> None:
    with loaded([file], threads) as other:
        assert np.array_equal(last_logits(other, prompt(1), [20, 57], first_pages(LENGTH)), alone)


def test_the_head_is_read_for_those_who_sample_alone(file: Path, alone: Floats) -> None:
    """A prompt in five passes: four need no scores."""
    with ExitStack() as stack:
        found = read_model(open_all([file], stack))
        smallest = sizes_of(found).least
    layers, head = (sum(segment.read_bytes for segment in found.manifest.segments if segment.key.kind is kind)
                    for kind in (Kind.LAYER, Kind.HEAD))
    with loaded([file], budget=smallest) as other:
        own, costs, missed, begin = sequence(other, prompt(1), first_pages(LENGTH)), [], 0, 0
        for count in (20, 20, 20, 10, 7):
            computed = other.runner.run([Work(own, begin, count)])
            costs.append(computed.cost.streamed_bytes - computed.cost.missed_bytes)
            missed += computed.cost.missed_bytes
            begin += count
        assert np.array_equal(computed.scores[0], alone)
        assert costs == [layers] * 4 + [layers + head]
        ahead = other.plan.tiers[0].slots * other.plan.tiers[0].slot_bytes
        ahead += 0 if other.plan.experts is None else other.plan.experts.memory
        assert other.flow.counters.streamed_bytes <= sum(costs) + missed + 2 * ahead


def test_weights_that_stream_change_nothing(file: Path, alone: Floats) -> None:
    with ExitStack() as stack:
        found = read_model(open_all([file], stack))
        smallest = sizes_of(found).least
    with loaded([file], budget=smallest) as other:
        assert other.plan.streamed_bytes
        assert np.array_equal(last_logits(other, prompt(1), [LENGTH], first_pages(LENGTH)), alone)


def test_what_a_window_no_longer_sees_is_given_back_and_changes_nothing(tmp_path: Path) -> None:
    """200 tokens through the scheduler, in chunks and one by one, over few pages of the window: as in one pass."""
    path = tmp_path / "model.gguf"
    write(path, tiny("gemma3", layers=7), Options(type=ggml.Q8_0))
    tokens = prompt(3, 200)
    with loaded([path], 2) as model:
        alone = last_logits(model, tokens, [200], first_pages(200))
        cache = KvCache([GroupPages(KvPages(count, PAGE_TOKENS), group.window)
                         for count, group in zip((7, 5), model.runner.model.kv, strict=True)])
        plan = Scheduler(cache, 1, Fixed(48))
        own = sequence(model, tokens[:190], [])
        own.limit, own.kept = 210, cache.nothing()
        plan.add(own)
        while len(own.tokens) < 200 or own.pending:
            work = plan.next_pass()
            scores = model.runner.run(work).scores
            plan.computed(work)
            assert cache.pools[1].pages.used <= 5
            if not own.pending and len(own.tokens) < 200:
                own.tokens.append(tokens[len(own.tokens)])
        assert np.array_equal(scores[0], alone)
