"""Are an expert's bytes right whatever order reads end in, and its slot left alone while a device works on it?"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvdma.fence import DONE, Fence
from nvstreamd.errors import NvstreamError
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.plan import minimum_budget
from support.examples import examples
from support.scripted_backend import Ending
from unit.weights.streams import PAGE, Model, Rig, made, scripted

EXPERTS = 6


class Work(Fence):
    """Work of a device that ends when the test says so."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def end(self) -> None:
        """The work has ended."""
        self._ended.set()

    def done(self) -> bool:
        """True once it has."""
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """False when it has not in so many seconds."""
        return self._ended.wait(seconds)


def model_of(layers: int, pages: list[int]) -> Model:
    """Layers of one page, each with experts of these sizes."""
    return made(([1, *pages]) * layers, experts=len(pages))


def holds(rig: Rig, model: Model, key: Key, view: memoryview) -> bool:
    """True when a slot holds the bytes of a key."""
    expected = model.expected[model.keys.index(key)]
    return bytes(view[: len(expected)]) == expected and rig.flow.segments[key].nbytes == len(expected)


def serve(rig: Rig, model: Model, layer: int, rows: Mapping[int, int], fence: Fence = DONE) -> set[int]:
    """What of a need came off the drive for it; every expert comes once, with its bytes."""
    assert rig.flow.experts is not None
    seen: list[int] = []
    missed: set[int] = set()
    with closing(rig.flow.experts.serve(layer, rows)) as arriving:
        for arrived in arriving:
            for number, slot in arrived.slots:
                assert holds(rig, model, Key(Kind.EXPERT, layer, number), slot.view)
                seen.append(number)
            missed |= arrived.missed
            arrived.until(fence)
    assert sorted(seen) == sorted(rows)
    return missed


@settings(derandomize=True, deadline=None, database=None, max_examples=examples(60))
@given(st.lists(st.integers(1, 5), min_size=2, max_size=EXPERTS), st.floats(0, 1), st.integers(1, 6), st.booleans(),
       st.dictionaries(st.integers(1, 200), st.integers(0, 7).map(lambda polls: Ending(polls=polls)), max_size=40),
       st.data())
def test_bytes_are_right_whatever_order_reads_end_in(pages: list[int], share: float, depth: int, newest_first: bool,
                                                     endings: dict[int, Ending], data: st.DataObject) -> None:
    model = model_of(2, pages)
    smallest = minimum_budget(model.by_key, 0)
    budget = smallest + int(share * (sum(model.sizes) - smallest)) // PAGE * PAGE
    with scripted(model, budget, endings, newest_first=newest_first, depth=depth) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        assert rig.flow.experts is not None and rig.pool.used <= budget
        for layer in (0, 1, 0, 1):
            wanted = data.draw(st.lists(st.integers(0, len(pages) - 1), min_size=1, unique=True))
            if layer == 0:
                rig.flow.experts.begin(data.draw(st.integers(1, 40)), 1)
            rig.flow.expect([Key(Kind.LAYER, layer)])
            with rig.flow.segment(Key(Kind.LAYER, layer)) as held:
                assert holds(rig, model, Key(Kind.LAYER, layer), held.slot.view)
            serve(rig, model, layer, dict.fromkeys(wanted, 3))
        counters = rig.flow.experts.counters
        assert sum(counters.hits) + sum(counters.misses) >= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_a_slot_is_not_read_over_while_a_device_works_on_it() -> None:
    """Two slots, both under work: a third expert comes once the first work has ended, and not before."""
    model = model_of(1, [2] * 4)
    with scripted(model, minimum_budget(model.by_key, 0)) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        assert rig.flow.experts is not None and rig.flow.experts.slots == 2
        rig.flow.experts.begin(1, 1)
        work = Work()
        stack.callback(work.end)
        held: dict[int, memoryview] = {}
        with closing(rig.flow.experts.serve(0, {0: 1, 1: 1})) as arriving:
            for arrived in arriving:
                held |= {number: slot.view for number, slot in arrived.slots}
                arrived.until(work)
        ended = threading.Thread(target=lambda: serve(rig, model, 0, {2: 1, 3: 1}))
        ended.start()
        ended.join(0.3)
        assert ended.is_alive()
        assert all(holds(rig, model, Key(Kind.EXPERT, 0, number), view) for number, view in held.items())
        work.end()
        ended.join(30)
        assert not ended.is_alive()


def test_a_read_that_fails_is_the_passes_error_and_nothing_waits_for_it() -> None:
    model = model_of(1, [2] * 4)
    broken = {read: Ending(errno=5) for read in range(40, 90)}
    with scripted(model, minimum_budget(model.by_key, 0), broken) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        assert rig.flow.experts is not None
        with pytest.raises(NvstreamError):
            for number in range(40):
                rig.flow.experts.begin(1, 1)
                serve(rig, model, 0, {number % 4: 1})


def test_a_need_that_is_given_up_leaves_everything_to_the_next() -> None:
    model = model_of(2, [2] * EXPERTS)
    with scripted(model, minimum_budget(model.by_key, 0)) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        assert rig.flow.experts is not None
        for _ in range(3):
            rig.flow.experts.begin(1, 1)
            with closing(rig.flow.experts.serve(0, dict.fromkeys(range(EXPERTS), 1))) as arriving:
                next(arriving)
            serve(rig, model, 1, dict.fromkeys(range(EXPERTS), 1))
