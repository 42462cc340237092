"""Is a manifest taken only when it tells one story, whichever version it is of?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BadModelFile, NvstreamError
from nvstreamd.weights.packed.stored_before import parse_manifest
from support.examples import examples
from support.shapes import tiny
from unit.weights.models import look, make, model_at, refusal
from unit.weights.stores import contents, edit, load_all, pack, written_before

Stored = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model of two layers on two drives."""
    return pack(make(tmp_path / "source.gguf"), [tmp_path / "a", tmp_path / "b"])


# Where a store of two layers has its segments.
CONSTANTS, FIRST, SECOND, HEAD = range(4)


def put(*keys: Any) -> Callable[[Stored], object]:
    """A change that sets what the keys but the last lead to."""
    def change(stored: Stored) -> None:
        value: Any = stored
        for key in keys[:-2]:
            value = value[key]
        value[keys[-2]] = keys[-1]
    return change


def swap_layers(stored: Stored) -> None:
    stored["segments"][FIRST], stored["segments"][SECOND] = stored["segments"][SECOND], stored["segments"][FIRST]


def shared_name(stored: Stored) -> None:
    """Checksums are held against names: a second segment of one name would never be checked."""
    stored["segments"][SECOND]["key"] = stored["segments"][FIRST]["key"]


def reshape(stored: Stored) -> None:
    tensor = next(t for t in stored["segments"][FIRST]["tensors"] if len(t["shape"]) == 2)
    tensor["shape"] = [tensor["shape"][0] * 2, tensor["shape"][1] // 2]


def rename_everywhere(stored: Stored) -> None:
    stored["shapes"]["blk.0.evil"] = stored["shapes"].pop("blk.0.attn_q.weight")
    stored["types"]["blk.0.evil"] = stored["types"].pop("blk.0.attn_q.weight")
    tensor = next(t for t in stored["segments"][FIRST]["tensors"] if t["name"] == "attn_q.weight")
    tensor.update(name="evil", tensor="blk.0.evil")


def one_more_shape(stored: Stored) -> None:
    stored["shapes"]["blk.00.x"] = [32]
    stored["types"]["blk.00.x"] = "F32"
    stored["bytes_by_type"]["F32"] += 128
    stored["segments"][FIRST]["tensors"].append(
        {"name": "x", "tensor": "blk.00.x", "type": "F32", "shape": [32], "offset": 0})


CHANGES: dict[str, Callable[[Stored], object]] = {
    "no layers": lambda s: s["segments"].__delitem__(slice(FIRST, HEAD)),
    "no head": lambda s: s["segments"].__delitem__(slice(HEAD, None)),
    "no segments": put("segments", []),
    "constants that are not first": lambda s: s["segments"].append(s["segments"].pop(CONSTANTS)),
    "an unknown kind": put("segments", FIRST, "key", "expert.0"),
    "a key that is written otherwise": put("segments", FIRST, "key", "layer.00"),
    "no parts": lambda s: (s["parts"].clear(), s["part_bytes"].clear()),
    "fewer parts": lambda s: (s["parts"].pop(), s["part_bytes"].pop()),
    "many parts": lambda s: s["parts"].extend([s["parts"][0]] * 1000),
    "a key too many": put("evil", 1),
    "sizes of another": put("part_bytes", 0, 1 << 61),
    "a size beyond reason": put("part_bytes", 0, 1 << 70),
    "a negative size": put("part_bytes", 0, -1),
    "an extent past the part": put("segments", FIRST, "extents", 0, "offset", 1 << 40),
    "an extent of another part": put("segments", FIRST, "extents", 0, "file", 9),
    "an extent off the alignment": put("segments", FIRST, "extents", 0, "offset", 1),
    "an extent of nothing": put("segments", FIRST, "extents", 0, "length", 0),
    "an extent past the slot": put("segments", FIRST, "extents", 0, "target", 1 << 30),
    "no extents": put("segments", FIRST, "extents", []),
    "half the extents": lambda s: s["segments"][FIRST]["extents"][0].update(
        length=s["segments"][FIRST]["extents"][0]["length"] - 4096),
    "one extent twice": lambda s: s["segments"][FIRST]["extents"].append(s["segments"][FIRST]["extents"][0]),
    "a slot of 2^61 bytes": put("segments", FIRST, "nbytes", 1 << 61),
    "a slot of nothing": put("segments", FIRST, "nbytes", 0),
    "layers in another order": swap_layers,
    "two segments of one name": shared_name,
    "a layer less": lambda s: s["segments"].pop(SECOND),
    "a layer more": lambda s: s["segments"].append({**s["segments"][FIRST], "key": "layer.2"}),
    "a tensor less": lambda s: s["segments"][FIRST]["tensors"].pop(),
    "a tensor twice": lambda s: s["segments"][FIRST]["tensors"].append(s["segments"][FIRST]["tensors"][0]),
    "a tensor past its segment": put("segments", FIRST, "tensors", 0, "offset", 1 << 40),
    "a tensor of another shape": reshape,
    "a tensor of no dimension": put("segments", FIRST, "tensors", 0, "shape", []),
    "a tensor of ten dimensions": put("segments", FIRST, "tensors", 0, "shape", [1] * 10),
    "a tensor of another type": put("segments", FIRST, "tensors", 0, "type", "Q4_0"),
    "an unknown type": put("types", "output.weight", "Q99"),
    "a type for nobody": put("types", "evil", "F32"),
    "an unknown tensor": rename_everywhere,
    "a second name for a layer": one_more_shape,
    "a shape of 2^40 rows": put("shapes", "output.weight", [1 << 40, 64]),
    "bytes beyond 64 bits": put("bytes_by_type", "F32", (1 << 62) - 1),
    "another number of bytes": lambda s: s["bytes_by_type"].update(F16=1),
    "head rows missing": lambda s: s["segments"][HEAD]["tensors"][0]["shape"].__setitem__(0, 32),
    "a head that begins later": put("segments", HEAD, "tensors", 0, "first", 32),
    "a head without a tensor": put("segments", HEAD, "tensors", []),
    "a head of the embedding": put("segments", HEAD, "tensors", 0, "name", "token_embd.weight"),
    "rows of the embedding as head": put("segments", HEAD, "tensors", 0, "tensor", "token_embd.weight"),
    "a slice past its tensor": put("segments", FIRST, "tensors", 0, "first", 1 << 40),
    "a slice of nobody": put("segments", FIRST, "tensors", 0, "tensor", "evil"),
    "a tensor called like another": put("segments", FIRST, "tensors", 0, "name", "ffn_norm.weight"),
    "constants without the norm": put("segments", CONSTANTS, "tensors", []),
    "an embedding elsewhere": put("embedding", "offset", 1 << 40),
    "an embedding with more rows": put("embedding", "rows", 1 << 30),
    "an embedding of another width": put("embedding", "columns", 32),
    "an embedding of another type": put("embedding", "type", "F32"),
    "a checksum that is none": put("segments", FIRST, "checksum", "x" * 16),
    "a checksum of 17 digits": put("segments", FIRST, "checksum", "0" * 17),
    "a tensor's name of 10 kB": put("shapes", "x" * 10_000, [1]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_tells_two_stories_is_refused(store: Path, what: str) -> None:
    edit(store, CHANGES[what])
    refusal(store, BadModelFile, "manifest.json")


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_earlier_version_gives_the_same_bytes(store: Path, version: int) -> None:
    now = load_all(store)
    written_before(store, version)
    assert load_all(store) == now and len(now) > 20
    with model_at(store) as model:
        assert "0.1.0 and later" in model.manifest.readers


BEFORE: dict[str, Callable[[Stored], object]] = {
    "no layers": put("layers", []),
    "layers in another order": lambda s: s["layers"].reverse(),
    "two segments of one name": lambda s: s["layers"][1].update(name="layer.0"),
    "a name that is no key": put("layers", 0, "name", "layer.0/../1"),
    "a layer of the head": put("layers", 0, "name", "head.7"),
    "a layer less": lambda s: s["layers"].pop(),
    "a layer that begins later": put("layers", 0, "first_row", 1),
    "a tensor less": lambda s: s["layers"][0]["tensors"].pop(),
    "head rows missing": lambda s: s["head"][0]["tensors"][0]["shape"].__setitem__(0, 32),
    "a head that begins later": put("head", 0, "first_row", 32),
    "no sources": put("sources", []),
    "segments beside": put("segments", []),
}


@pytest.mark.parametrize("what", BEFORE)
def test_a_manifest_of_before_that_tells_two_stories_is_refused(store: Path, what: str) -> None:
    written_before(store, 2)
    edit(store, BEFORE[what])
    refusal(store, BadModelFile, "manifest.json")


def test_a_store_says_who_reads_it_and_one_of_a_later_version_does_so_too(store: Path) -> None:
    assert "0.2.0 and later" in look(store).readers
    edit(store, lambda stored: stored.update(version=4, readers="nvstreamd 7.1 and later", more=1))
    error = refusal(store, BadModelFile, "version 4")
    assert "nvstreamd 7.1 and later" in error.hint


def test_other_hyperparameters_in_the_header_are_noticed(store: Path) -> None:
    header = store / "header.gguf"
    content = header.read_bytes()
    assert b"llama.block_count\4\0\0\0\2" in content
    header.write_bytes(content.replace(b"llama.block_count\4\0\0\0\2", b"llama.block_count\4\0\0\0\3"))
    refusal(store, BadModelFile, "blk.2")


FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=examples(250),
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
    assert parse_manifest("x", good.encode()).version == 3
