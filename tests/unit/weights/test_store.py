"""Is a packed model taken only as what the importer wrote: whole, unflipped, and nowhere but in its own directories?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nvstreamd.errors import BadModelFile, NotFound
from nvstreamd.weights.packed.store import LARGEST_MANIFEST, files_of
from unit.weights.models import look, make, model_at, refusal
from unit.weights.stores import edit, load_all, pack

Stored = dict[str, Any]
PASSWORDS = "/etc/passwd"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model of two layers on two drives."""
    return pack(make(tmp_path / "source.gguf"), [tmp_path / "a", tmp_path / "b"])


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def budgets(store: Path) -> tuple[int | None, int]:
    """Everything resident, and as little as possible."""
    return None, look(store).minimum_budget


@pytest.mark.parametrize("small", [False, True])
def test_a_flipped_bit_is_noticed_with_file_and_segment(store: Path, small: bool) -> None:
    with model_at(store) as model:
        segments = [model.manifest.constants, *model.manifest.segments]
        paths = [Path(path) for path in model.manifest.paths]
    for segment in segments:
        extent = segment.extents[-1]
        place = extent.offset + extent.length - 1 - 4096 * small
        place = max(place, extent.offset)
        flip(paths[extent.file], place)
        with pytest.raises(BadModelFile) as error:
            load_all(store, budgets(store)[small])
        assert segment.name in str(error.value) and str(paths[extent.file]) in str(error.value)
        assert "import" in error.value.hint
        flip(paths[extent.file], place)
    assert load_all(store)


def test_a_flipped_bit_in_the_embedding_is_noticed(store: Path) -> None:
    with model_at(store) as model:
        table = model.manifest.embedding
        path = Path(model.manifest.paths[0])
    flip(path, table.pieces[0].offset + table.rows * table.type.row_bytes(table.columns) - 1)
    with pytest.raises(BadModelFile, match=r"part-0\.bin.*embedding") as error:
        load_all(store)
    assert error.value.hint


@pytest.mark.parametrize("lost", ["manifest.json", "header.gguf", "part-0.bin"])
def test_a_store_that_lacks_a_file_is_refused(store: Path, lost: str) -> None:
    (store / lost).unlink()
    with pytest.raises((BadModelFile, NotFound)) as error:
        look(store)
    assert lost in str(error.value) and error.value.hint


def test_a_part_of_another_size_is_refused(store: Path) -> None:
    os.truncate(store / "part-0.bin", 4096)
    refusal(store, BadModelFile, "part-0.bin", "sizes")


def test_no_directory_is_not_an_unfinished_import(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.nvs"):
        files_of(tmp_path / "gone.nvs")
    (tmp_path / "file.nvs").write_bytes(b"")
    refusal(tmp_path / "file.nvs", BadModelFile)
    (tmp_path / "empty.nvs").mkdir()
    refusal(tmp_path / "empty.nvs", BadModelFile, "run it again")


PATHS = [PASSWORDS, "/etc/shadow", "part-0.bin", "m.nvs/part-0.bin", "../m.nvs/part-0.bin", "/dev/zero",
         "/tmp/../etc/m.nvs/part-0.bin", "/tmp/other.nvs/part-0.bin", "/m.nvs/part-1.bin", "/m.nvs/part-00.bin",
         "/m.nvs/part-0.bin/x", "/a\0/m.nvs/part-0.bin", "/\ud800/m.nvs/part-0.bin", "x" * 100_000, ""]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path)[:24])
def test_a_manifest_cannot_name_a_file_elsewhere(store: Path, path: str) -> None:
    edit(store, lambda stored: stored["parts"].__setitem__(0, path))
    error = refusal(store, BadModelFile)
    assert error.field == "parts.0"


@pytest.mark.parametrize("name", ["m.nvs/part-0.bin", "m.nvs/header.gguf", "m.nvs/manifest.json"])
@pytest.mark.parametrize("trap", ["link", "fifo", "directory"])
def test_what_the_daemon_opens_is_a_plain_file_under_its_own_name(store: Path, name: str, trap: str) -> None:
    """Opening a FIFO would hold up every user of the daemon; a link would lend them the daemon's rights."""
    path = store.parent / name
    path.rename(path.with_suffix(".old"))
    match trap:
        case "link":
            path.symlink_to(path.with_suffix(".old"))
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    with pytest.raises(BadModelFile) as error:
        look(store)
    assert path.name in str(error.value) and error.value.hint


def test_a_manifest_without_end_is_not_read_to_its_end(store: Path) -> None:
    with (store / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    refusal(store, BadModelFile, f"{LARGEST_MANIFEST >> 20} MiB")


RAW = [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'"\\ud800"', b"NaN",
       b'{"version": 1}', b'{"\\ud800": 1}', b'{"version": 2}', b'{"version": 3}', bytes(1000), b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: str(raw[:16]))
def test_a_manifest_that_is_none_is_refused(store: Path, raw: bytes) -> None:
    (store / "manifest.json").write_bytes(raw)
    refusal(store, BadModelFile, "manifest.json")
