"""Does a packed model hold the very weights of its source, spread over the drives, whatever interrupted the import?"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from nvstreamd import ggml
from nvstreamd.errors import InvalidRequest, StorageError, StorageRefused
from nvstreamd.weights.packed.layout import MOST_STRIPES, lay_out, stripe_length
from nvstreamd.weights.packed.manifest import ALIGNMENT
from nvstreamd.weights.packed.store import MANIFEST_NAME
from support.shapes import FAMILIES, tiny
from support.small_disk import needs_root, small_disk
from unit.weights.models import look, make, model_at
from unit.weights.stores import contents, load_all, pack

MIB = 1 << 20
SEGMENTS = 1 + 3 + 1
Bytes = dict[str, bytes]


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
