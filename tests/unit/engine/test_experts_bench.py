"""Does the bench of experts count right what our engine did, and does our side of it do what it is asked?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bench.experts_cache import LEAST_BOUND, Cached, half_wanted
from bench.experts_ours import Recorder, Session, Tally, read_ids, write_ids
from bench.experts_sides import Asked, rounds_of
from nvstreamd import ggml
from nvstreamd.engine.cost import PassCost
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Wishes, load
from nvstreamd.weights.packed.files import open_all
from support.expert_replay import Need, save
from support.expert_replay import load as load_routes
from support.moe_gguf import TOPICS, Law, tokens, write_routed
from support.random_gguf import Options
from support.shapes import tiny
from support.vocabularies import synthetic_vocabulary

MIB = 1 << 20
VOCABULARY = 32 * TOPICS


def test_routes_are_recorded_by_pass_and_layer() -> None:
    recorder, experts = Recorder(), np.array([[3, 5], [5, 1]], np.int32)
    recorder.begin()
    recorder.routed(0, experts)
    # An engine may use its memory again.
    experts[:] = 7
    recorder.routed(2, np.array([[2, 4]], np.int32))
    recorder.routed(2, np.array([[2, 6]], np.int32))
    recorder.begin()
    recorder.routed(0, np.array([[0, 1]], np.int32))
    assert recorder.take() == [[{3: 1, 5: 2, 1: 1}, {}, {2: 2, 4: 1, 6: 1}], [{0: 1, 1: 1}]]
    assert recorder.take() == []


def test_passes_that_waited_for_most_of_their_time_are_bound_by_what_they_missed() -> None:
    tally = Tally()
    for waited in (0.1, 0.9):
        tally.saw(PassCost(1, 100, 0, read_bytes=70, read_seconds=0.7, waited_seconds=waited, multiplied={},
                           seconds=1.0))
    assert tally.answer() == {"passes": 2, "waited_seconds": 1.0, "bound": 1, "bound_bytes": 70,
                              "bound_read_seconds": 0.7, "bound_seconds": 1.0}


def test_hits_are_held_against_the_best_and_the_drive_against_itself(tmp_path: Path) -> None:
    routes: list[list[Need]] = [[{0: 1}], [{1: 1}], [{0: 1}], [{2: 1}], [{0: 1}]]
    save(tmp_path / "routes", routes)
    cached = Cached()
    # With one slot nobody has a hit; with two the best has two, and ours had one.
    cached.saw({"hits": [1], "misses": [4], "missed_bytes": 4000, "passes": 5, "bound": LEAST_BOUND, "bound_bytes": 900,
                "bound_read_seconds": 1.0, "bound_seconds": 1.5, "slots": 2, "raw": 1000.0,
                "routes": str(tmp_path / "routes")})
    assert cached.ratios() == pytest.approx({"hit_rate_over_best": 0.5})
    assert cached.drive() == pytest.approx({"drive_fraction_of_raw": 0.9})
    assert cached.policies["LRU"] == [0.4] and cached.bytes_a_token == [800] and not cached.doubts


def test_the_law_shows_in_how_many_experts_half_of_the_needs_are_of() -> None:
    alike: list[list[Need]] = [[{expert: 1}] for expert in range(8)]
    assert half_wanted(alike) == 4
    assert half_wanted([*alike, *([[{0: 9}]] * 8)]) == 1
    assert half_wanted([]) == 0


def test_rounds_that_others_disturbed_are_taken_again() -> None:
    shares = [0.0, 0.5, 0.5, 0.5, 0.5]

    def one(number: int) -> tuple[Asked, Asked]:
        return Asked({"tokens": 10 * (1 + number), "seconds": 1.0}, 0.0), Asked({"tokens": 5, "seconds": 1.0},
                                                                             shares[number])

    samples = rounds_of(2, one)
    # As many times again as there are rounds; then what is there counts, and the table says so.
    assert samples.ours == [10, 40] and samples.retaken == 2 and samples.others == [0.0, 0.5]


def test_our_side_answers_and_its_routes_are_what_it_counted(tmp_path: Path) -> None:
    path, routes = tmp_path / "model.gguf", tmp_path / "routes"
    shape = tiny("qwen3moe")
    write_routed(path, shape, Options(type=ggml.Q8_0, vocabulary=synthetic_vocabulary(VOCABULARY)))
    write_ids(tmp_path / "two", [tokens(Law.DRIFT, 6, seed, VOCABULARY) for seed in (1, 2)])
    write_ids(tmp_path / "one", [tokens(Law.ZIPF, 9, 3, VOCABULARY)])
    assert [len(each) for each in read_ids(tmp_path / "two")] == [6, 6]
    with ExitStack() as stack:
        model = read_model(open_all([path], stack))
        size = path.stat().st_size
        session = Session(model, load(model, Wishes(size + MIB, size, MIB, 2, ("pread",), ("cpu",), 1), stack))
        assert session.loaded.runner.routed is not None
        session.loaded.runner.routed.on_route = session.recorder.routed
        decoded = session.obey(f"forced cold {tmp_path / 'two'}")
        prefilled = session.obey(f"forced_prefill warm {tmp_path / 'one'}")
        assert (decoded["tokens"], prefilled["tokens"]) == (10, 9)
        # The first tokens twice, as it is cold; the prompt twice, as it is warm, in chunks as pacing chooses.
        assert session.obey(f"routes {routes}\n")["passes"] >= 7 + 2
        assert session.obey("raw")["bytes_per_second"]
    recorded = load_routes(routes)
    for answer, passes in ((decoded, recorded[:7]), (prefilled, recorded[7:])):
        counted = np.asarray(answer["hits"]) + np.asarray(answer["misses"])
        assert counted.tolist() == [sum(len(each[layer]) for each in passes) for layer in range(shape.layers)]
    assert [sum(need.values()) for need in recorded[0]] == [2 * shape.used] * shape.layers
