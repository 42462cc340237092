"""Does the probe take the first backend that reads right, and say why it passed over the others?"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from nvdma.arena import Arena
from nvdma.backends.pread import PreadBackend
from nvdma.backends.uring import UringBackend
from nvdma.errors import ArenaExhausted, BackendUnavailable, ShortRead
from nvdma.select import probe
from nvdma.types import Completion, Read, Source
from unit.nvdma.rig import MIB, PAGE, SECONDS, Rig, pattern


@pytest.mark.parametrize(
    ("candidates", "kind"),
    [(["uring", "pread"], UringBackend), (["pread", "uring"], PreadBackend), (["pread"], PreadBackend)],
)
def test_the_first_that_works_is_taken_open_and_idle(
    uring_rig: Rig, candidates: list[str], kind: type[UringBackend | PreadBackend]
) -> None:
    data = pattern(3 * MIB + 17)
    source, arena = uring_rig.file("model", {0: data}), uring_rig.arena(4 * MIB)
    selection = probe(candidates, [source], arena)
    with closing(selection.backend) as backend:
        assert isinstance(backend, kind) and selection.refused == () and backend.in_flight == 0
        backend.submit([Read(1, 0, 0, 4 * MIB, 0)])
        assert backend.wait(SECONDS) == [Completion(1, len(data))]
        assert arena.view[: len(data)] == data


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, MIB, MIB + 1, 2 * MIB])
def test_files_of_every_size_are_probed(uring_rig: Rig, size: int) -> None:
    sources = [uring_rig.file(f"f{n}", {0: pattern(size, n)}) for n in range(2)]
    probe(["uring"], sources, uring_rig.arena(MIB)).backend.close()


def test_a_refused_candidate_is_reported_and_the_next_one_taken(uring_rig: Rig) -> None:
    data = pattern(PAGE)
    source = uring_rig.file("model", {0: data})
    arena = MisalignedArena(4 * PAGE)
    with ExitStack() as stack:
        stack.enter_context(arena)
        selection = probe(["uring", "pread"], [source], arena)
        stack.callback(selection.backend.close)
        assert selection.backend.facts.name == "pread"
        (refusal,) = selection.refused
        assert refusal.name == "uring"
        assert "the arena begins at" in refusal.reason and "Arena(nbytes, alignment=" in refusal.reason


class MisalignedArena(Arena):
    """An arena that begins in the middle of a sector, as a foreign allocator's would."""

    @property
    def view(self) -> memoryview:
        return super().view[8:]

    @property
    def address(self) -> int:
        return super().address + 8


def test_different_bytes_refuse_a_backend(uring_rig: Rig) -> None:
    # A path that brings other bytes than the file's, as a broken one does: the file is exchanged beneath it.
    right = uring_rig.file("right", {0: pattern(MIB, 1)})
    wrong = uring_rig.file("wrong", {0: pattern(MIB, 2)})
    arena = SwappingArena(MIB, right, wrong)
    with arena, pytest.raises(BackendUnavailable, match=r"pread: .*right.*differ from the same bytes"):
        probe(["pread"], [right], arena)


class SwappingArena(Arena):
    """An arena beneath which the file is exchanged as soon as a backend first looks at it."""

    def __init__(self, nbytes: int, right: Source, wrong: Source) -> None:
        super().__init__(nbytes)
        self._right, self._wrong = right, wrong

    @property
    def view(self) -> memoryview:
        os.dup2(self._wrong.fd, self._right.fd, inheritable=False)
        return super().view


def test_when_none_works_every_reason_is_given() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        with Arena(MIB) as arena, pytest.raises(ShortRead, match="/proc/self/status"):
            probe(["uring", "pread"], [Source(fd, "/proc/self/status", MIB)], arena)
        with (
            Arena(MIB) as arena,
            pytest.raises(BackendUnavailable, match=r"none of uring works \(uring: /proc"),
        ):
            probe(["uring"], [Source(fd, "/proc/self/status", 100)], arena)
    finally:
        os.close(fd)


def test_a_misspelt_name_is_an_error_and_not_a_slow_default(uring_rig: Rig) -> None:
    source, arena = uring_rig.file("model", {0: pattern(PAGE)}), uring_rig.arena(PAGE)
    with pytest.raises(BackendUnavailable, match="'urign' is not known; name one of: uring, pread"):
        probe(["urign", "pread"], [source], arena)


def test_an_arena_too_small_to_probe_is_said(tmp_path: Path, uring_rig: Rig) -> None:
    source, arena = uring_rig.file("model", {0: pattern(PAGE)}), uring_rig.arena(100)
    with pytest.raises(ArenaExhausted, match="100 bytes is smaller than one page"):
        probe(["pread"], [source], arena)


def test_a_refused_backend_gives_everything_back(uring_rig: Rig) -> None:
    source = uring_rig.file("model", {0: pattern(PAGE)})
    before = sorted(os.listdir("/proc/self/fd"))
    with MisalignedArena(2 * PAGE) as arena, pytest.raises(BackendUnavailable):
        probe(["uring"], [source], arena)
    assert sorted(os.listdir("/proc/self/fd")) == before
