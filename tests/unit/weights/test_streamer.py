"""Are the right bytes in memory when a pass needs them, pass after pass, and what does the user read when they are not?

The scripted backend says when and how each read ends; nothing here waits for a clock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.backends.memory import Image, MemoryBackend, Script, Step
from nvdma.backends.pread import PreadBackend
from nvdma.types import Completion, Read, Source
from nvstreamd.errors import BadModelFile, BudgetTooSmall, ModelChanged, NvstreamError, StorageError
from nvstreamd.weights.files import OpenFile, adopt
from nvstreamd.weights.manifest import ALIGNMENT, Extent, Segment
from nvstreamd.weights.placement import Plan, Rates, minimum_budget, plan
from nvstreamd.weights.slots import Region, Slots
from nvstreamd.weights.streamer import Streamer

PAGE = ALIGNMENT
BLOCK = 2 * PAGE
PATHS = ("drive0/part-0.bin", "drive1/part-1.bin")
RATES = Rates(1e9, 1e9)


@dataclass(slots=True)
class Model:
    """Segments of made-up bytes over two files, the last of which ends off the page."""

    segments: list[Segment] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    expected: list[bytes] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each segment in a slot."""
        return [segment.nbytes for segment in self.segments]


def made(pages: Sequence[int], *, checksums: bool = True, loose: int = 0) -> Model:
    """Segments of so many pages, in turns half in one file and half in the other, `loose` bytes missing at the end."""
    model, contents = Model(), [bytearray(), bytearray()]
    for number, count in enumerate(pages):
        body = bytes((number * 7 + place * 3 + 1) % 251 for place in range(16)) * (count * PAGE // 16)
        extents, target = [], 0
        for turn, share in enumerate((count - count // 2, count // 2)):
            file = (number + turn) % 2
            length = share * PAGE
            if length:
                extents.append(Extent(file, len(contents[file]), length, target))
                contents[file] += body[target : target + length]
                target += length
        checksum = xxhash.xxh3_64_intdigest(body) if checksums else None
        model.segments.append(Segment(f"layer.{number}", tuple(extents), (), count * PAGE, 0, checksum))
        model.expected.append(body)
    model.files = [bytes(content[: len(content) - loose]) for content in contents]
    return model


@dataclass(slots=True)
class Rig:
    """A streamer that has not started, and what it stands on."""

    streamer: Streamer
    backend: Backend
    slots: Slots
    arena: Arena
    plan: Plan


@contextmanager
def scripted(model: Model, budget: int, steps: Mapping[int, Step] | None = None, *, newest_first: bool = False,
             depth: int = 4) -> Iterator[Rig]:
    """Over the scripted backend; its two files exist on disk only as descriptors of nothing."""
    with ExitStack() as stack:
        fd = os.memfd_create("empty")
        stack.callback(os.close, fd)
        files = [OpenFile(fd, path, len(content), os.fstat(fd).st_mtime_ns, 0)
                 for path, content in zip(PATHS, model.files, strict=True)]
        images = {path: Image(len(content), {0: content}) for path, content in zip(PATHS, model.files, strict=True)}
        sources = [Source(fd, file.path, file.size) for file in files]
        arena = stack.enter_context(Arena(budget))
        backend = MemoryBackend(images, sources, arena, depth, script=Script(steps or {}, newest_first))
        yield rig_of(model, budget, arena, backend, files, stack)


@contextmanager
def on_disk(model: Model, budget: int, directory: Path) -> Iterator[Rig]:
    """Over pread and real files."""
    with ExitStack() as stack:
        files = []
        for path, content in zip(PATHS, model.files, strict=True):
            (directory / Path(path).name).write_bytes(content)
            fd = os.open(directory / Path(path).name, os.O_RDONLY)
            stack.callback(os.close, fd)
            files.append(adopt(fd, str(directory / Path(path).name)))
        arena = stack.enter_context(Arena(budget))
        backend = PreadBackend([Source(file.fd, file.path, file.size) for file in files], arena, 4)
        yield rig_of(model, budget, arena, backend, files, stack)


def rig_of(model: Model, budget: int, arena: Arena, backend: Backend, files: Sequence[OpenFile],
           stack: ExitStack) -> Rig:
    backend.open()
    stack.callback(backend.close)
    slots = Slots(arena)
    slots.open(stack)
    chosen = plan(model.sizes, 0, budget, 4 * BLOCK, RATES)
    return Rig(Streamer(backend, slots, files, model.segments, chosen, BLOCK), backend, slots, arena, chosen)


def run_passes(rig: Rig, model: Model, passes: int) -> None:
    """Every segment of every pass, each byte compared."""
    for _ in range(passes):
        for index, expected in enumerate(model.expected):
            with rig.streamer.segment(index) as region:
                for extent in model.segments[index].extents:
                    there = min(extent.length, len(model.files[extent.file]) - extent.offset)
                    begin, end = extent.target, extent.target + there
                    assert bytes(region.view[begin:end]) == expected[begin:end], f"segment {index}"
                assert region.data.ctypes.data == rig.arena.address + region.offset


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.floats(0, 1),
       st.dictionaries(st.integers(1, 200), st.integers(0, 7).map(lambda polls: Step(polls=polls)), max_size=40),
       st.booleans(), st.integers(1, 6))
def test_bytes_are_right_whatever_order_reads_end_in(pages: list[int], share: float, steps: dict[int, Step],
                                                     newest_first: bool, depth: int) -> None:
    model = made(pages)
    smallest = minimum_budget(model.sizes, 0)
    budget = smallest + int(share * (sum(model.sizes) - smallest)) // PAGE * PAGE
    with scripted(model, budget, steps, newest_first=newest_first, depth=depth) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        run_passes(rig, model, 4)
        assert rig.slots.used <= budget == rig.arena.nbytes
        assert rig.slots.used == rig.plan.memory
    assert not readers()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_bytes_are_right_from_a_disk(tmp_path: Path, share: float) -> None:
    model = made([5, 3, 8, 1, 2, 7, 4, 6], checksums=False, loose=100)
    smallest = minimum_budget(model.sizes, 0)
    budget = smallest + int(share * (sum(model.sizes) - smallest)) // PAGE * PAGE
    with on_disk(model, budget, tmp_path) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        run_passes(rig, model, 5)


def test_bytes_are_counted_by_where_they_came_from(tmp_path: Path) -> None:
    model = made([4] * 8)
    with on_disk(model, 5 * 4 * PAGE, tmp_path) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        run_passes(rig, model, 3)
        counters = rig.streamer.counters
        resident = sum(model.sizes[index] for index in rig.plan.resident)
        assert resident and rig.plan.streamed_bytes
        assert counters.resident_bytes == 3 * resident
        ahead = rig.plan.slots * rig.plan.slot_bytes
        assert 3 * rig.plan.streamed_bytes <= counters.streamed_bytes <= 3 * rig.plan.streamed_bytes + ahead
        assert counters.waited_seconds >= 0


def test_reading_ahead_stops_when_every_slot_is_full() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        with rig.streamer.segment(0) as held:
            assert bytes(held.view) == model.expected[0]
            assert rig.streamer.counters.streamed_bytes <= 2 * 4 * PAGE
        for index in range(1, 8):
            with rig.streamer.segment(index) as region:
                assert bytes(region.view) == model.expected[index]


# One segment takes two reads of BLOCK; tags count from 1.
FAILURES: dict[str, tuple[Step, type[NvstreamError], str]] = {
    "a drive's error": (Step(errno=errno.EIO), StorageError, "Input/output error"),
    "a read that ends short": (Step(cut=0), ModelChanged, "restore"),
    "a read that never ends": (Step(polls=None), StorageError, "waited"),
}


@pytest.mark.parametrize("tag", [1, 2, 9, 16, 17, 40])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_read_ends_the_pass_with_the_files_name(failure: str, tag: int) -> None:
    step, kind, word = FAILURES[failure]
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {tag: step}) as rig:
        with pytest.raises(kind) as error, ExitStack() as stack:
            rig.streamer.start(stack)
            run_passes(rig, model, 6)
        assert type(error.value) is kind and word in str(error.value) and error.value.hint
        assert any(path in str(error.value) for path in PATHS)
        assert not readers()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_read_of_a_resident_segment_ends_the_load(failure: str) -> None:
    step, kind, _ = FAILURES[failure]
    model = made([4] * 3)
    with scripted(model, sum(model.sizes), {3: step}) as rig, ExitStack() as stack:
        with pytest.raises(kind) as error:
            rig.streamer.start(stack)
        assert any(path in str(error.value) for path in PATHS) and error.value.hint


def test_every_later_pass_hears_of_the_error_too() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {1: Step(errno=errno.EIO)}) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        for _ in range(3):
            with pytest.raises(StorageError), rig.streamer.segment(0):
                pass


def test_a_partial_read_goes_on_and_brings_the_whole() -> None:
    model = made([4] * 8)
    with scripted(model, 2 * 4 * PAGE, {tag: Step(cut=PAGE) for tag in range(1, 60)}) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        run_passes(rig, model, 3)


def test_a_file_truncated_between_passes_is_named(tmp_path: Path) -> None:
    model = made([4] * 8, checksums=False)
    with on_disk(model, 2 * 4 * PAGE, tmp_path) as rig:
        with pytest.raises(ModelChanged, match=r"part-1\.bin") as error, ExitStack() as stack:
            rig.streamer.start(stack)
            run_passes(rig, model, 1)
            os.truncate(tmp_path / "part-1.bin", PAGE)
            run_passes(rig, model, 3)
        assert error.value.hint
        with pytest.raises(ModelChanged, match=r"part-1\.bin"):
            rig.streamer.check_unchanged()


@pytest.mark.parametrize("polls", [None, 0, 3])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_stop_in_mid_stream_leaves_nothing_running(taken: int, polls: int | None) -> None:
    """The stack unwinds with reads in flight: no thread, no exported byte, and the arena can close."""
    model = made([4] * 8)
    late = {tag: Step(polls=polls) for tag in range(2 * taken + 3, 200)}
    with scripted(model, 3 * 4 * PAGE, late) as rig:
        with ExitStack() as stack:
            rig.streamer.start(stack)
            # A read of a later segment that never ends may be reported first.
            with suppress(StorageError) if polls is None else nullcontext():
                for index in range(taken):
                    with rig.streamer.segment(index) as region:
                        assert bytes(region.view) == model.expected[index]
        assert not readers()
    with pytest.raises(RuntimeError):
        _ = rig.arena.view


def test_a_pass_that_fails_gives_its_slot_back(tmp_path: Path) -> None:
    model = made([4] * 8)
    with on_disk(model, 2 * 4 * PAGE, tmp_path) as rig, ExitStack() as stack:
        rig.streamer.start(stack)
        with pytest.raises(KeyError), rig.streamer.segment(0):
            raise KeyError
        for index in range(1, 8):
            with rig.streamer.segment(index) as region:
                assert bytes(region.view) == model.expected[index]


def test_a_flipped_bit_is_named_by_file_and_segment() -> None:
    model = made([4] * 8)
    damaged = bytearray(model.files[1])
    damaged[5 * PAGE] ^= 1
    model.files[1] = bytes(damaged)
    with scripted(model, 2 * 4 * PAGE) as rig:
        with pytest.raises(BadModelFile, match=r"part-1\.bin.*layer\.[0-9]") as error, ExitStack() as stack:
            rig.streamer.start(stack)
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
        rig.streamer.start(stack)
        run_passes(rig, model, 5)
    assert len(sums) == 8


class Broken(MemoryBackend):
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
        sources = [Source(file.fd, file.path, file.size) for file in rig.streamer.files]
        rig.streamer.backend = Broken(images, sources, rig.arena, 4)
        rig.streamer.start(stack)
        with pytest.raises(NvstreamError, match="ZeroDivisionError") as error, rig.streamer.segment(0):
            pass
        assert error.value.status == "INTERNAL"


def test_slots_hand_out_no_more_than_there_is() -> None:
    with Arena(4 * PAGE) as arena, ExitStack() as stack:
        slots = Slots(arena)
        slots.open(stack)
        regions = [slots.resident(1), *slots.ring(2, PAGE)]
        assert [(region.offset, region.nbytes) for region in regions] == [(0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE)]
        with pytest.raises(BudgetTooSmall, match="4096 are left") as error:
            slots.resident(PAGE + 1)
        assert error.value.hint and slots.used == 3 * PAGE


def test_an_error_that_still_looks_at_a_slot_is_the_one_reported() -> None:
    """A traceback keeps the tensors of a failed pass alive; that must not hide why it failed."""
    def fail(region: Region) -> None:
        kept = region.data.view(np.float32)
        raise StorageError(f"{len(kept)} weights are gone", "look at the drive")

    arena = Arena(4 * PAGE)
    arena.open()
    with pytest.raises(StorageError, match="weights are gone"), ExitStack() as stack:
        slots = Slots(arena)
        slots.open(stack)
        regions = [slots.resident(PAGE) for _ in range(3)]
        fail(regions[1])
    arena.close()
