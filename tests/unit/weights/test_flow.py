"""Are the right bytes in memory when a pass needs them, pass after pass, and what does the user read when they are not?

The scripted backend says when and how each read ends; nothing here waits for a clock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from nvdma.arena import Arena
from nvdma.types import Completion, Read, Source
from nvstreamd.errors import BadModelFile, BudgetTooSmall, ModelChanged, NvstreamError, StorageError
from nvstreamd.kernels.host_bytes import host_bytes
from nvstreamd.weights.flow.plan import minimum_budget
from nvstreamd.weights.flow.pools import Pool, Slot
from support.scripted_backend import Ending, Image, ScriptedBackend
from unit.weights.streams import PAGE, PATHS, made, on_disk, run_passes, scripted


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.floats(0, 1),
       st.dictionaries(st.integers(1, 200), st.integers(0, 7).map(lambda polls: Ending(polls=polls)), max_size=40),
       st.booleans(), st.integers(1, 6))
def test_bytes_are_right_whatever_order_reads_end_in(pages: list[int], share: float, endings: dict[int, Ending],
                                                     newest_first: bool, depth: int) -> None:
    model = made(pages)
    smallest = minimum_budget(model.by_key, 0)
    budget = smallest + int(share * (sum(model.sizes) - smallest)) // PAGE * PAGE
    with scripted(model, budget, endings, newest_first=newest_first, depth=depth) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        run_passes(rig, model, 4)
        assert rig.pool.used <= budget == rig.arena.nbytes
        assert rig.pool.used == rig.plan.tiers[0].memory
    assert not readers()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_bytes_are_right_from_a_disk(tmp_path: Path, share: float) -> None:
    model = made([5, 3, 8, 1, 2, 7, 4, 6], checksums=False, loose=100)
    smallest = minimum_budget(model.by_key, 0)
    budget = smallest + int(share * (sum(model.sizes) - smallest)) // PAGE * PAGE
    with on_disk(model, budget, tmp_path) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        run_passes(rig, model, 5)


def test_bytes_are_counted_by_where_they_came_from(tmp_path: Path) -> None:
    model = made([4] * 8)
    with on_disk(model, 5 * 4 * PAGE, tmp_path) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        run_passes(rig, model, 3)
        counters = rig.flow.counters
        resident = rig.plan.tiers[0].resting
        assert resident and rig.plan.streamed_bytes
        assert counters.resident_bytes == 3 * resident
        ahead = rig.plan.tiers[0].slots * rig.plan.tiers[0].slot_bytes
        assert 3 * rig.plan.streamed_bytes <= counters.streamed_bytes <= 3 * rig.plan.streamed_bytes + ahead
        assert counters.waited_seconds >= 0


def test_reading_ahead_stops_when_every_slot_is_full() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        with rig.flow.segment(model.keys[0]) as held:
            assert bytes(held.slot.view) == model.expected[0]
            assert rig.flow.counters.streamed_bytes <= 2 * 4 * PAGE
        for index in range(1, 8):
            with rig.flow.segment(model.keys[index]) as held:
                assert bytes(held.slot.view) == model.expected[index]


# One segment takes two reads of BLOCK; tags count from 1.
FAILURES: dict[str, tuple[Ending, type[NvstreamError], str]] = {
    "a drive's error": (Ending(errno=errno.EIO), StorageError, "Input/output error"),
    "a read that ends short": (Ending(cut=0), ModelChanged, "restore"),
    "a read that never ends": (Ending(polls=None), StorageError, "waited"),
}


@pytest.mark.parametrize("tag", [1, 2, 9, 16, 17, 40])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_read_ends_the_pass_with_the_files_name(failure: str, tag: int) -> None:
    ending, kind, word = FAILURES[failure]
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {tag: ending}) as rig:
        with pytest.raises(kind) as error, ExitStack() as stack:
            rig.flow.start(stack)
            run_passes(rig, model, 6)
        assert type(error.value) is kind and word in str(error.value) and error.value.hint
        assert any(path in str(error.value) for path in PATHS)
        assert not readers()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_read_of_a_resident_segment_ends_the_load(failure: str) -> None:
    ending, kind, _ = FAILURES[failure]
    model = made([4] * 3)
    with scripted(model, sum(model.sizes), {3: ending}) as rig, ExitStack() as stack:
        with pytest.raises(kind) as error:
            rig.flow.start(stack)
        assert any(path in str(error.value) for path in PATHS) and error.value.hint


def test_every_later_pass_hears_of_the_error_too() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {1: Ending(errno=errno.EIO)}) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        for _ in range(3):
            with pytest.raises(StorageError), rig.flow.segment(model.keys[0]):
                pass


def test_a_partial_read_goes_on_and_brings_the_whole() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {tag: Ending(cut=PAGE) for tag in range(1, 60)}) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        run_passes(rig, model, 3)


def test_a_file_truncated_between_passes_is_named(tmp_path: Path) -> None:
    model = made([4] * 8, checksums=False)
    with on_disk(model, 2 * 4 * PAGE, tmp_path) as rig:
        with pytest.raises(ModelChanged, match=r"part-1\.bin") as error, ExitStack() as stack:
            rig.flow.start(stack)
            run_passes(rig, model, 1)
            os.truncate(tmp_path / "part-1.bin", PAGE)
            run_passes(rig, model, 3)
        assert error.value.hint
        with pytest.raises(ModelChanged, match=r"part-1\.bin"):
            rig.flow.check_unchanged()


@pytest.mark.parametrize("polls", [None, 0, 3])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_stop_in_mid_stream_leaves_nothing_running(taken: int, polls: int | None) -> None:
    """The stack unwinds with reads in flight: no thread, no exported byte, and the arena can close."""
    model = made([4] * 8)
    late = {tag: Ending(polls=polls) for tag in range(2 * taken + 3, 200)}
    with scripted(model, 3 * 4 * PAGE, late) as rig:
        with ExitStack() as stack:
            rig.flow.start(stack)
            # A read of a later segment that never ends may be reported first.
            with suppress(StorageError) if polls is None else nullcontext():
                for index in range(taken):
                    with rig.flow.segment(model.keys[index]) as held:
                        assert bytes(held.slot.view) == model.expected[index]
        assert not readers()
    with pytest.raises(RuntimeError):
        _ = rig.arena.view


def test_a_pass_that_fails_gives_its_slot_back(tmp_path: Path) -> None:
    model = made([4] * 8)
    with on_disk(model, 2 * 4 * PAGE, tmp_path) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        with pytest.raises(KeyError), rig.flow.segment(model.keys[0]):
            raise KeyError
        for index in range(1, 8):
            with rig.flow.segment(model.keys[index]) as held:
                assert bytes(held.slot.view) == model.expected[index]


def test_a_flipped_bit_is_named_by_file_and_segment() -> None:
    model = made([4] * 8)
    damaged = bytearray(model.files[1])
    damaged[5 * PAGE] ^= 1
    model.files[1] = bytes(damaged)
    with scripted(model, 2 * 4 * PAGE) as rig:
        with pytest.raises(BadModelFile, match=r"part-1\.bin.*layer\.[0-9]") as error, ExitStack() as stack:
            rig.flow.start(stack)
            run_passes(rig, model, 1)
        assert error.value.hint and error.value.field.startswith("layer.")


def test_a_checksum_is_computed_once_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a tenth of a pass: once tells a damaged store, every time would slow each token."""
    model = made([4] * 8)
    sums: list[int] = []
    real = xxhash.xxh3_64_intdigest

    def counted(data: memoryview) -> int:
        sums.append(len(data))
        return real(data)

    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", counted)
    with scripted(model, 4 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.flow.start(stack)
        run_passes(rig, model, 5)
    assert len(sums) == 8


class Broken(ScriptedBackend):
    """A backend with a fault of its own."""

    def submit(self, reads: Sequence[Read]) -> None:
        """Fails like no backend should."""
        raise ZeroDivisionError("a fault nobody thought of")

    def wait(self, timeout: float) -> list[Completion]:
        """Has nothing."""
        return []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_dies_is_not_waited_for() -> None:
    """Its engine is replaced: a fault of ours is no reason to give a drive up."""
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        images = {path: Image(len(content), {0: content}) for path, content in zip(PATHS, model.files, strict=True)}
        sources = [Source(file.fd, file.path, file.size) for file in rig.flow.mover.files]
        rig.flow.mover.backend = Broken(images, sources, rig.arena, 4)
        rig.flow.start(stack)
        with pytest.raises(NvstreamError, match="ZeroDivisionError") as error, rig.flow.segment(model.keys[0]):
            pass
        assert error.value.status == "INTERNAL"


def test_slots_hand_out_no_more_than_there_is() -> None:
    with Arena(4 * PAGE) as arena, ExitStack() as stack:
        pool = Pool(arena)
        pool.open(stack)
        slots = [pool.take(1), pool.take(PAGE), pool.take(PAGE)]
        spans = [slot.span for slot in slots]
        assert [(span.offset, span.nbytes) for span in spans] == [(0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE)]
        with pytest.raises(BudgetTooSmall, match="4096 are left") as error:
            pool.take(PAGE + 1)
        assert error.value.hint and pool.used == 3 * PAGE


def test_an_error_that_still_looks_at_a_slot_is_the_one_reported() -> None:
    """A traceback keeps the tensors of a failed pass alive; that must not hide why it failed."""
    def fail(slot: Slot) -> None:
        kept = host_bytes(slot.span, 0, PAGE).view(np.float32)
        raise StorageError(f"{len(kept)} weights are gone", "look at the drive")

    arena = Arena(4 * PAGE)
    arena.open()
    with pytest.raises(StorageError, match="weights are gone"), ExitStack() as stack:
        pool = Pool(arena)
        pool.open(stack)
        slots = [pool.take(PAGE) for _ in range(3)]
        fail(slots[1])
    arena.close()
