"""Does an import go on where it was interrupted, and is a source that changes meanwhile never mixed with itself?"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile, ModelChanged
from nvstreamd.weights.packed.attempts import JOURNAL_NAME
from nvstreamd.weights.packed.importer import Importer, Progress
from nvstreamd.weights.packed.manifest import ALIGNMENT
from nvstreamd.weights.packed.targets import in_directories
from support.shapes import tiny
from unit.weights.models import make, model_at, refusal
from unit.weights.stores import contents, load_all, pack

MIB = 1 << 20
SEGMENTS = 1 + 3 + 1
Bytes = dict[str, bytes]


class Interruption(Exception):
    """Whatever ends an import in the middle."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of three layers."""
    return make(tmp_path / "source.gguf", tiny(layers=3))


def drives(tmp_path: Path, count: int = 1, under: str = "store") -> list[Path]:
    return [tmp_path / under / f"drive{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("after", range(1, SEGMENTS + 1))
def test_an_import_goes_on_where_it_was_interrupted(tmp_path: Path, source: Path, count: int, after: int) -> None:
    reference = pack(source, drives(tmp_path, count, "reference"))
    homes = drives(tmp_path, count)
    seen: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == after:
            raise Interruption

    with pytest.raises(Interruption):
        pack(source, homes, interrupt)
    refusal(homes[0] / "m.nvs", BadModelFile, "run it again")
    written = seen[-1].done
    again: list[Progress] = []
    store = pack(source, homes, again.append)
    assert again[-1].resumed == written and again[-1].done == again[-1].total
    assert [progress.done for progress in again] == sorted(progress.done for progress in again)
    assert load_all(store) == load_all(reference)
    for number in range(count):
        part = f"m.nvs/part-{number}.bin"
        assert (homes[number] / part).read_bytes() == (tmp_path / f"reference/drive{number}" / part).read_bytes()


def test_one_importer_may_run_again(tmp_path: Path, source: Path) -> None:
    with model_at(source) as model:
        homes = drives(tmp_path)
        importer = Importer("m", model.manifest, model.data, in_directories("m", homes), homes[0])

        def interrupt(progress: Progress) -> None:
            raise Interruption

        with pytest.raises(Interruption):
            importer.run(interrupt)
        seen: list[Progress] = []
        importer.run(seen.append)
    assert seen[-1].done == seen[-1].total and seen[-1].resumed == seen[0].done


def interrupted(source: Path, homes: list[Path], after: int = 2) -> int:
    """An import that ends after so many segments; returns the bytes it wrote."""
    seen: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == after:
            raise Interruption

    with suppress(Interruption):
        pack(source, homes, interrupt)
    return seen[-1].done


TORN = [b'["layer.1", "00', b"\0\0\0\0\0\n", b"{}\n", b"[]\n", b"\xff\xfe\n", b'["x", "not hex"]\n', b"[1]\n", b"7\n",
        b"[" * 100_000 + b"\n"]


@pytest.mark.parametrize("torn", TORN, ids=lambda torn: str(torn[:12]))
def test_a_journal_torn_by_a_power_cut_is_used_as_far_as_it_reads(tmp_path: Path, source: Path, torn: bytes) -> None:
    homes = drives(tmp_path)
    written = interrupted(source, homes)
    with (homes[0] / "m.nvs" / JOURNAL_NAME).open("ab") as journal:
        journal.write(torn)
    assert interrupted(source, homes, 3) > written
    seen: list[Progress] = []
    store = pack(source, homes, seen.append)
    assert seen[-1].resumed > written
    assert load_all(store) == load_all(source)


@pytest.mark.parametrize("journal", [b"", b"\n", b"rubbish", b"\xff\n", b"[" * 100_000])
def test_a_journal_of_rubbish_starts_over(tmp_path: Path, source: Path, journal: bytes) -> None:
    homes = drives(tmp_path)
    interrupted(source, homes)
    (homes[0] / "m.nvs" / JOURNAL_NAME).write_bytes(journal)
    seen: list[Progress] = []
    assert load_all(pack(source, homes, seen.append)) == load_all(source)
    assert seen[-1].resumed == 0


def test_what_an_interruption_left_half_written_is_written_again(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    interrupted(source, homes, 3)
    with (homes[0] / "m.nvs/part-0.bin").open("r+b") as part:
        part.seek(ALIGNMENT + 100)
        part.write(b"other bytes")
    seen: list[Progress] = []
    assert load_all(pack(source, homes, seen.append)) == load_all(source)
    assert 0 < seen[-1].resumed < seen[2].done


def test_another_source_under_the_same_name_starts_over(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    interrupted(source, homes, 3)
    other = make(tmp_path / "other.gguf", tiny(layers=3), seed=2)
    seen: list[Progress] = []
    assert load_all(pack(other, homes, seen.append)) == load_all(other)
    assert seen[-1].resumed == 0


def test_importing_again_over_a_finished_store_replaces_it(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path, 2)
    first = contents_after(source, homes)
    assert contents_after(source, homes) == first
    smaller = make(tmp_path / "smaller.gguf", tiny(layers=1))
    assert load_all(pack(smaller, homes)) == load_all(smaller)
    interrupted(source, homes)
    refusal(homes[0] / "m.nvs", BadModelFile, "run it again")
    assert contents_after(source, homes) == first


def contents_after(source: Path, homes: list[Path]) -> Bytes:
    pack(source, homes)
    return contents(homes)


@pytest.mark.parametrize("after", [1, SEGMENTS])
@pytest.mark.parametrize("change", ["touch", "truncate", "overwrite"])
def test_a_source_that_changes_leaves_no_model(tmp_path: Path, source: Path, change: str, after: int) -> None:
    homes = drives(tmp_path)
    seen: list[Progress] = []

    def meddle(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == after:
            if change == "truncate":
                os.truncate(source, 20_000)
            elif change == "overwrite":
                with source.open("r+b") as file:
                    file.seek(-100_000, os.SEEK_END)
                    file.write(b"\1" * 90_000)
            os.utime(source, ns=(5, 5))

    with pytest.raises(ModelChanged, match=r"source\.gguf"):
        pack(source, homes, meddle)
    refusal(homes[0] / "m.nvs", BadModelFile, "run it again")


def test_a_source_restored_with_its_old_time_does_not_resume_from_a_mixture(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    before, facts = source.read_bytes(), source.stat()
    seen: list[Progress] = []

    def meddle(progress: Progress) -> None:
        seen.append(progress)
        with source.open("r+b") as file:
            file.seek(-100_000, os.SEEK_END)
            file.write(b"\1" * 90_000)

    with pytest.raises(ModelChanged):
        pack(source, homes, meddle)
    assert len(seen) == 1, "noticed before the next segment counts as done"
    with source.open("r+b") as file:
        file.write(before)
    os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert load_all(pack(source, homes)) == load_all(source)
