"""Is what a pass needs read, nothing else, and no slot read over while work on it goes on?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.errors import StorageError
from support.scripted_backend import Ending
from unit.weights.streams import PAGE, Model, Rig, made, scripted


def test_what_a_pass_does_not_need_is_not_read() -> None:
    """Prompts need no head but in their last pass: layers 0 to 5 here, then all of it, then layers again."""
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        for itinerary in [range(6)] * 20 + [range(8)] + [range(6)] * 20:
            cost = rig.flow.expect([model.keys[index] for index in itinerary])
            assert cost.streamed_bytes == len(itinerary) * 4 * PAGE and not cost.resident_bytes
            take(rig, model, itinerary)
        wanted = (40 * 6 + 8) * 4 * PAGE
        # Two slots were filled ahead, perhaps with what was not needed, whenever the kind of pass changed.
        assert wanted <= rig.flow.counters.streamed_bytes <= wanted + 4 * 2 * 4 * PAGE


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(st.lists(st.tuples(st.sets(st.integers(0, 7)), st.booleans()), min_size=1, max_size=12), st.integers(2, 7),
       st.dictionaries(st.integers(1, 120), st.integers(0, 7).map(lambda polls: Ending(polls=polls)), max_size=20))
def test_segments_any_segments_get_the_right_bytes(
        passes: list[tuple[set[int], bool]], slots: int, late: dict[int, Ending]) -> None:
    """Some are cut short, as by an error: the next begins with slots full of what nobody will take."""
    model = made([3, 1, 4, 1, 5, 2, 6, 2])
    with scripted(model, slots * 6 * PAGE, late) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        for needed, cut in passes:
            itinerary = sorted(needed)
            rig.flow.expect([model.keys[index] for index in itinerary])
            take(rig, model, itinerary[: len(itinerary) // 2] if cut else itinerary)


def take(rig: Rig, model: Model, indices: Sequence[int]) -> None:
    """Takes segments of a pass, each byte compared."""
    for index in indices:
        with rig.flow.segment(model.keys[index]) as held:
            whole = bytes(held.slot.view[: model.segments[index].nbytes])
            assert whole == model.expected[index], f"segment {index}"


class Behind:
    """The fence of work that somebody else ends."""

    def __init__(self) -> None:
        self.ended, self.waited_for = threading.Event(), threading.Event()

    def __str__(self) -> str:
        return "a card's stage"

    def done(self) -> bool:
        return self.ended.is_set()

    def wait(self, seconds: float) -> bool:
        self.waited_for.set()
        return self.ended.wait(seconds)


def test_a_slot_is_not_read_over_before_the_work_on_it_has_ended() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        fence = Behind()
        stack.callback(fence.ended.set)
        with rig.flow.segment(model.keys[0]) as held:
            kept = held.slot
            held.until(fence)
        assert fence.waited_for.wait(60), "the reader took the slot without asking"
        assert rig.flow.counters.streamed_bytes == 2 * 4 * PAGE and bytes(kept.view) == model.expected[0]
        fence.ended.set()
        for index in range(1, 8):
            with rig.flow.segment(model.keys[index]) as held:
                assert bytes(held.slot.view) == model.expected[index]


class Hung(Behind):
    """The fence of work that does not end in any time that is given."""

    def wait(self, seconds: float) -> bool:
        return False


def test_work_that_never_ends_is_named() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        with rig.flow.segment(model.keys[0]) as held:
            held.until(Hung())
        with pytest.raises(StorageError, match="a card's stage"):
            for index in range(1, 8):
                with rig.flow.segment(model.keys[index]):
                    pass
