"""Does a packed model hold the very weights of its source, spread over the drives, whatever interrupted the import?"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from nvstreamd import ggml
from nvstreamd.errors import BadModelFile, InvalidRequest, ModelChanged, StorageError, StorageRefused
from nvstreamd.weights.attempts import JOURNAL_NAME
from nvstreamd.weights.importer import Importer, Progress
from nvstreamd.weights.layout import MOST_STRIPES, lay_out, stripe_length
from nvstreamd.weights.manifest import ALIGNMENT
from nvstreamd.weights.store import MANIFEST_NAME
from nvstreamd.weights.targets import in_directories
from support.random_gguf import FAMILIES, tiny
from support.small_disk import needs_root, small_disk
from unit.weights.models import look, make, model_at, refusal
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


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("family", "kind"), [*((family, ggml.F16) for family in FAMILIES), ("llama", ggml.Q6_K)])
def test_packed_weights_are_those_of_the_source(tmp_path: Path, family: str, kind: ggml.GgmlType, count: int) -> None:
    shape = tiny(family, width=256)
    source = make(tmp_path / "source.gguf", shape, type=kind, rope_freqs=[2.0] * (shape.head_dim // 2))
    store = pack(source, drives(tmp_path, count))
    assert load_all(store) == load_all(source)
    ours, theirs = look(store), look(source)
    for field in ("architecture", "weight_bytes", "bytes_by_type", "bytes_per_token", "kv_bytes_per_token",
                  "description", "vocabulary_size", "layers"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.minimum_budget <= theirs.minimum_budget


@pytest.mark.parametrize("parts", [2, 4])
def test_a_split_source_is_packed_like_a_whole_one(tmp_path: Path, parts: int) -> None:
    whole = load_all(make(tmp_path / "whole.gguf"))
    assert load_all(pack(make(tmp_path / "split.gguf", parts=parts), drives(tmp_path, 2))) == whole


def test_a_first_part_without_tensors_and_padding_is_packed(tmp_path: Path) -> None:
    """gguf-split --no-tensor-first-split writes such: metadata in a file of its own."""
    split = {"split.no": struct.pack("<IH", 2, 1), "split.count": struct.pack("<IH", 2, 2)}
    whole = make(tmp_path / "whole.gguf", metadata=split)
    content = whole.read_bytes()
    table = content.index(b"token_embd.weight") - 8
    keys = content[24:table].replace(b"split.no\2\0\0\0\1", b"split.no\2\0\0\0\0")
    source = tmp_path / "split-00001-of-00002.gguf"
    source.write_bytes(content[:8] + bytes(8) + content[16:24] + keys)
    whole.replace(tmp_path / "split-00002-of-00002.gguf")
    assert source.stat().st_size % 32, "the reader's padding lies past the file's end"
    assert load_all(pack(source, drives(tmp_path))) == load_all(source)


def test_the_header_is_kept_byte_for_byte(tmp_path: Path, source: Path) -> None:
    store = pack(source, drives(tmp_path, 2))
    header = (store / "header.gguf").read_bytes()
    assert source.read_bytes().startswith(header)
    with model_at(store) as packed, model_at(source) as plain:
        assert packed.manifest.metadata == plain.manifest.metadata
    assert sorted(path.name for path in store.iterdir()) == ["header.gguf", MANIFEST_NAME, "part-0.bin"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_drive_gets_its_share(tmp_path: Path, count: int) -> None:
    source = make(tmp_path / "source.gguf", tiny(width=512, layers=6), type=ggml.F32)
    with model_at(source) as model:
        layout = lay_out(model.manifest, [1] * count)
    load = [0] * count
    for segment in layout.segments:
        for extent in segment.extents:
            assert not extent.offset % ALIGNMENT and not extent.length % ALIGNMENT
            load[extent.file] += extent.length
    assert sum(load) == sum(segment.nbytes for segment in layout.segments)
    assert max(load) - min(load) <= 2 * MIB
    spans = sorted((e.file, e.offset, e.length) for s in layout.segments for e in s.extents)
    ends = [0] * count
    for file, offset, length in spans:
        assert offset == ends[file], "neither gap nor overlap"
        ends[file] += length
    ends[0] += layout.part_bytes[0] - layout.embedding_offset
    assert tuple(ends) == layout.part_bytes


def test_a_manifest_never_outgrows_what_is_read_back() -> None:
    assert stripe_length(100 << 30, 2) == MIB and stripe_length(1 << 40, 1) > 1 << 40
    assert (10 << 40) // stripe_length(10 << 40, 3) <= MOST_STRIPES


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


def test_a_packed_model_is_no_source_least_of_all_its_own(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    store = pack(source, homes)
    before = contents(homes)
    with pytest.raises(InvalidRequest, match="packed"):
        pack(store, homes)
    assert contents(homes) == before


def test_more_drives_than_descriptors_travel_are_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidRequest, match="252"):
        pack(source, drives(tmp_path, 252))


def test_two_imports_of_one_name_do_not_mix(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    (homes[0] / "m.nvs").mkdir(parents=True)
    fd = os.open(homes[0] / "m.nvs", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(StorageError, match="another import"):
        pack(source, homes)
    os.close(fd)
    assert load_all(pack(source, homes)) == load_all(source)


@pytest.mark.parametrize("trap", ["link", "fifo", "directory"])
def test_an_import_writes_through_no_trap(tmp_path: Path, source: Path, trap: str) -> None:
    """The engine may run as root, and the drive's directory may be another's."""
    homes = drives(tmp_path)
    part = homes[0] / "m.nvs/part-0.bin"
    part.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    match trap:
        case "link":
            part.symlink_to(victim)
        case "fifo":
            os.mkfifo(part)
        case "directory":
            part.mkdir()
    with pytest.raises(StorageRefused, match=r"part-0\.bin") as error:
        pack(source, homes)
    assert error.value.hint and victim.read_bytes() == b"precious"


def test_a_link_in_the_place_of_the_manifest_is_replaced_not_followed(tmp_path: Path, source: Path) -> None:
    homes = drives(tmp_path)
    home = homes[0] / "m.nvs"
    home.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("manifest.json.tmp", "header.gguf.tmp", "journal.jsonl.tmp", "manifest.json"):
        (home / name).symlink_to(victim)
    assert load_all(pack(source, homes)) == load_all(source)
    assert victim.read_bytes() == b"precious"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageRefused, match="file") as error:
        pack(source, [tmp_path / "file"])
    assert "run the same import again" in error.value.hint


@needs_root
def test_a_read_only_directory_is_no_passing_error_and_nothing_is_left_of_the_import(tmp_path: Path,
                                                                                     source: Path) -> None:
    """A program that is told to try again would do that for ever; and a model that never was would be listed."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageRefused, match="Read-only") as error:
            pack(source, [tmp_path / "store", disk])
    assert error.value.status == "FAILED_PRECONDITION"
    assert not list((tmp_path / "store").iterdir())


def test_the_manifest_names_absolute_paths_and_checksums(tmp_path: Path, source: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = pack(source, [Path("relative"), Path("other")])
    stored = json.loads((store / MANIFEST_NAME).read_text())
    assert stored["parts"] == [str(tmp_path / "relative/m.nvs/part-0.bin"), str(tmp_path / "other/m.nvs/part-1.bin")]
    assert load_all(store) == load_all(source)
