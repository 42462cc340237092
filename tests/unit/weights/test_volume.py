"""Is what a drive says about itself whole after any power cut, and does each model get a place of its own?"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvstreamd.errors import StorageFull
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.superblock import DATA_BEGIN
from nvstreamd.weights.packed.volume import Lengths
from unit.weights.disks import MIB, Disks
from unit.weights.power import Writes
from unit.weights.volumes import ROOM, SERIAL, A, B, C, Change, blank, names, names_in, on, reserve, volume_of


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    """A blank drive of 16 MiB."""
    disks = Disks(tmp_path / "dev")
    disks.add(SERIAL)
    return disks


def finish(model: str) -> Change:
    return lambda file: volume_of(file).finish(model)


HISTORY: list[Change] = [blank, reserve("m", A), finish(A), reserve("other", B), reserve("m", C), finish(C),
                         lambda file: volume_of(file).remove("m")]


@pytest.mark.parametrize("number", range(len(HISTORY)))
def test_after_a_power_cut_a_drive_is_as_before_or_as_after(disks: Disks, number: int) -> None:
    for change in HISTORY[:number]:
        on(disks, change)
    disk, kept = disks.directory / SERIAL, disks.directory / "kept"
    before = names(disks)
    shutil.copy(disk, kept)
    writes = Writes()
    with pytest.MonkeyPatch.context() as patch:
        writes.watch(patch)
        on(disks, HISTORY[number])
    after = names(disks)
    kept.replace(disk)
    seen = on(disks, lambda file: [names_in(file) for _ in writes.images(disk)])
    assert before != after and {str(each) for each in seen} == {str(before), str(after)}
    assert seen[0] == before and seen[-1] == after


def test_after_a_power_cut_the_next_change_is_as_safe(disks: Disks) -> None:
    """Whatever is half there must not be what the next change relies on."""
    for change in HISTORY[:3]:
        on(disks, change)
    disk, kept = disks.directory / SERIAL, disks.directory / "kept"
    shutil.copy(disk, kept)
    writes = Writes()
    with pytest.MonkeyPatch.context() as patch:
        writes.watch(patch)
        on(disks, reserve("other", B))
    shutil.copy(kept, disk)
    for number, _ in enumerate(writes.images(disk)):
        if number % 16 == 0:
            shutil.copy(disk, kept)
            with ExitStack() as stack:
                volume = volume_of(disks_at(kept, stack))
                volume.reserve("third", C, ROOM)
                assert {e.name for e in volume_of(volume.file).models} in ({"m", "third"}, {"m", "other", "third"})


def disks_at(path: Path, stack: ExitStack) -> OpenFile:
    return Disks(path.parent).open_block(path.name, 1, write=True, stack=stack)


def test_models_lie_side_by_side_where_there_is_room(disks: Disks) -> None:
    on(disks, blank)
    for name, model, size in (("a", A, MIB), ("b", B, 2 * MIB), ("c", C, MIB)):
        on(disks, reserve(name, model, Lengths(size - 8192, 4096, 4096)))
    places = on(disks, lambda file: [e.part.offset // MIB for e in volume_of(file).models])
    assert places == [4, 5, 7]
    on(disks, lambda file: volume_of(file).remove("b"))
    on(disks, reserve("d", "d" * 32, Lengths(2 * MIB, 4096, 4096)))
    on(disks, reserve("e", "e" * 32))
    places = on(disks, lambda file: {e.name: e.part.offset // MIB for e in volume_of(file).models})
    assert places == {"a": 4, "c": 7, "d": 8, "e": 5}, "the first gap that is large enough"


def test_an_import_keeps_the_place_that_it_has(disks: Disks) -> None:
    on(disks, blank)
    first = on(disks, reserve("m", A))
    assert on(disks, reserve("m", A)) == first
    on(disks, finish(A))
    kept = on(disks, reserve("m", A))
    assert (kept.part, kept.unfinished) == (first.part, False)  # type: ignore[attr-defined]


def test_an_older_model_stays_until_the_newer_is_whole_and_unfinished_attempts_do_not(disks: Disks) -> None:
    for change in (blank, reserve("m", A), finish(A), reserve("m", B), reserve("m", C)):
        on(disks, change)
    assert names(disks) == [("m", A, False), ("m", C, True)]
    on(disks, finish(C))
    assert names(disks) == [("m", C, False)]


def test_no_space_is_told_with_what_is_free_and_what_is_there(disks: Disks) -> None:
    for change in (blank, reserve("large", A, Lengths(10 * MIB, 4096, 4096)), finish(A), reserve("half", B)):
        on(disks, change)
    before = names(disks)
    with pytest.raises(StorageFull) as full:
        on(disks, reserve("m", C, Lengths(4 * MIB, 4096, 4096)))
    free = 12 * MIB - 10 * MIB - 8192 - 5 * 4096 - 3 * 4096
    for word in (SERIAL, "large", "half (unfinished)", str(free), str(4 * MIB + 8192)):
        assert word in full.value.message
    assert full.value.hint and names(disks) == before


def test_a_drive_too_small_for_anything_is_left_alone(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    path = disks.add(SERIAL, DATA_BEGIN)
    with pytest.raises(StorageFull):
        on(disks, blank)
    assert path.read_bytes() == bytes(DATA_BEGIN)
