"""Is a packed model taken only as what the importer wrote: whole, unflipped, and nowhere but in its own directories?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BadModelFile, NotFound, NvstreamError
from nvstreamd.weights import stored as stores
from nvstreamd.weights.store import LARGEST_MANIFEST, files_of
from support.random_gguf import tiny
from unit.weights.models import look, make, model_at, refusal
from unit.weights.stores import contents, edit, load_all, pack

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
        segments = [model.manifest.constants, *model.manifest.passes_over]
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
       b'{"version": 1}', b'{"\\ud800": 1}', b'{"version": 2}', bytes(1000), b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: str(raw[:16]))
def test_a_manifest_that_is_none_is_refused(store: Path, raw: bytes) -> None:
    (store / "manifest.json").write_bytes(raw)
    refusal(store, BadModelFile, "manifest.json")


def segment(stored: Stored, name: str) -> Stored:
    return next(s for s in (stored["constants"], *stored["layers"], *stored["head"]) if s["name"] == name)


def put(*keys: Any) -> Callable[[Stored], object]:
    """A change that sets what the keys but the last lead to."""
    def change(stored: Stored) -> None:
        value: Any = stored
        for key in keys[:-2]:
            value = value[key]
        value[keys[-2]] = keys[-1]
    return change


def swap_layers(stored: Stored) -> None:
    stored["layers"].reverse()


def shared_name(stored: Stored) -> None:
    """Checksums are held against names: a second segment of one name would never be checked."""
    stored["layers"][1]["name"] = stored["layers"][0]["name"]


def reshape(stored: Stored) -> None:
    tensor = next(t for t in stored["layers"][0]["tensors"] if len(t["shape"]) == 2)
    tensor["shape"] = [tensor["shape"][0] * 2, tensor["shape"][1] // 2]


def rename_everywhere(stored: Stored) -> None:
    stored["shapes"]["blk.0.evil"] = stored["shapes"].pop("blk.0.attn_q.weight")
    stored["types"]["blk.0.evil"] = stored["types"].pop("blk.0.attn_q.weight")
    next(t for t in stored["layers"][0]["tensors"] if t["name"] == "attn_q.weight")["name"] = "evil"


def one_more_shape(stored: Stored) -> None:
    stored["shapes"]["blk.00.x"] = [32]
    stored["types"]["blk.00.x"] = "F32"
    stored["bytes_by_type"]["F32"] += 128
    stored["layers"][0]["tensors"].append({"name": "x", "type": "F32", "shape": [32], "offset": 0})


CHANGES: dict[str, Callable[[Stored], object]] = {
    "no layers": put("layers", []),
    "no head": put("head", []),
    "no parts": lambda s: (s["parts"].clear(), s["part_bytes"].clear()),
    "fewer parts": lambda s: (s["parts"].pop(), s["part_bytes"].pop()),
    "many parts": lambda s: s["parts"].extend([s["parts"][0]] * 1000),
    "a key too many": put("evil", 1),
    "sizes of another": put("part_bytes", 0, 1 << 61),
    "a size beyond reason": put("part_bytes", 0, 1 << 70),
    "a negative size": put("part_bytes", 0, -1),
    "an extent past the part": put("layers", 0, "extents", 0, "offset", 1 << 40),
    "an extent of another part": put("layers", 0, "extents", 0, "file", 9),
    "an extent off the alignment": put("layers", 0, "extents", 0, "offset", 1),
    "an extent of nothing": put("layers", 0, "extents", 0, "length", 0),
    "an extent past the slot": put("layers", 0, "extents", 0, "target", 1 << 30),
    "no extents": put("layers", 0, "extents", []),
    "half the extents": lambda s: s["layers"][0]["extents"][0].update(
        length=s["layers"][0]["extents"][0]["length"] - 4096),
    "one extent twice": lambda s: s["layers"][0]["extents"].append(s["layers"][0]["extents"][0]),
    "a slot of 2^61 bytes": put("layers", 0, "nbytes", 1 << 61),
    "a slot of nothing": put("layers", 0, "nbytes", 0),
    "layers in another order": swap_layers,
    "two segments of one name": shared_name,
    "a layer less": lambda s: s["layers"].pop(),
    "a layer more": lambda s: s["layers"].append(s["layers"][0]),
    "a tensor less": lambda s: s["layers"][0]["tensors"].pop(),
    "a tensor twice": lambda s: s["layers"][0]["tensors"].append(s["layers"][0]["tensors"][0]),
    "a tensor past its segment": put("layers", 0, "tensors", 0, "offset", 1 << 40),
    "a tensor of another shape": reshape,
    "a tensor of no dimension": put("layers", 0, "tensors", 0, "shape", []),
    "a tensor of ten dimensions": put("layers", 0, "tensors", 0, "shape", [1] * 10),
    "a tensor of another type": put("layers", 0, "tensors", 0, "type", "Q4_0"),
    "an unknown type": put("types", "output.weight", "Q99"),
    "a type for nobody": put("types", "evil", "F32"),
    "an unknown tensor": rename_everywhere,
    "a second name for a layer": one_more_shape,
    "a shape of 2^40 rows": put("shapes", "output.weight", [1 << 40, 64]),
    "bytes beyond 64 bits": put("bytes_by_type", "F32", (1 << 62) - 1),
    "another number of bytes": lambda s: s["bytes_by_type"].update(F16=1),
    "head rows missing": lambda s: s["head"][0]["tensors"][0]["shape"].__setitem__(0, 32),
    "a head that begins later": put("head", 0, "first_row", 32),
    "a head without a tensor": put("head", 0, "tensors", []),
    "a head of the embedding": put("head", 0, "tensors", 0, "name", "token_embd.weight"),
    "constants without the norm": put("constants", "tensors", []),
    "an embedding elsewhere": put("embedding", "offset", 1 << 40),
    "an embedding with more rows": put("embedding", "rows", 1 << 30),
    "an embedding of another width": put("embedding", "columns", 32),
    "an embedding of another type": put("embedding", "type", "F32"),
    "a checksum that is none": put("layers", 0, "checksum", "x" * 16),
    "a checksum of 17 digits": put("layers", 0, "checksum", "0" * 17),
    "a tensor's name of 10 kB": put("shapes", "x" * 10_000, [1]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_tells_two_stories_is_refused(store: Path, what: str) -> None:
    edit(store, CHANGES[what])
    refusal(store, BadModelFile, "manifest.json")


def test_other_hyperparameters_in_the_header_are_noticed(store: Path) -> None:
    header = store / "header.gguf"
    content = header.read_bytes()
    assert b"llama.block_count\4\0\0\0\2" in content
    header.write_bytes(content.replace(b"llama.block_count\4\0\0\0\2", b"llama.block_count\4\0\0\0\3"))
    refusal(store, BadModelFile, "blk.2")


FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=250,
                suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store whose manifest is overwritten again and again, and that manifest."""
    directory = tmp_path_factory.mktemp("fuzz")
    store = pack(make(directory / "source.gguf", tiny(layers=1)), [directory / "a"])
    return store, (store / "manifest.json").read_text()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    inner = [place for _, item in pairs if isinstance(item, dict | list) for place in places(item)]
    return [(value, key) for key, _ in pairs] + inner


def survive(store: Path, text: str) -> None:
    (store / "manifest.json").write_text(text)
    try:
        look(store)
    except NvstreamError as error:
        assert error.hint and len(str(error)) < 3000
        str(error).encode()


@FUZZ
@given(st.data())
def test_a_manifest_with_other_values_in_it(target: tuple[Path, str], data: st.DataObject) -> None:
    store, good = target
    stored = json.loads(good)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(stored)))
        near = [container[key] + data.draw(st.integers(-4096, 4096))] if type(container[key]) is int else []
        container[key] = data.draw(st.one_of(JSON, *map(st.just, near)))
    survive(store, json.dumps(stored))


@FUZZ
@given(st.data())
def test_a_manifest_of_mutated_text(target: tuple[Path, str], data: st.DataObject) -> None:
    store, good = target
    where = data.draw(st.integers(0, len(good)))
    lost = data.draw(st.integers(0, 30))
    added = data.draw(st.text(st.characters(max_codepoint=127), max_size=8))
    survive(store, good[:where] + added + good[where + lost :])


def test_the_store_of_the_fuzzers_is_good(target: tuple[Path, str]) -> None:
    store, good = target
    (store / "manifest.json").write_text(good)
    assert look(store).layers == 1 and contents([store.parent])
    assert stores.parse_manifest("x", good.encode()).version == 2
