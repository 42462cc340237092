"""Is whatever a drive may say about itself refused, unless we could have written it?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvstreamd.errors import BadVolume, StorageFull
from nvstreamd.weights.packed.superblock import BLOCK, CHECKSUM, DATA_BEGIN, MAGIC, MOST_MODELS, Superblock
from nvstreamd.weights.packed.volume import AREAS, read_volume
from support.examples import examples
from unit.weights.disks import MIB, Disks
from unit.weights.volumes import SERIAL, A, B, blank, names, on, reserve


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    """A blank drive of 16 MiB."""
    disks = Disks(tmp_path / "dev")
    disks.add(SERIAL)
    return disks


def test_a_directory_holds_only_so_many_models(disks: Disks) -> None:
    on(disks, blank)
    path = disks.directory / SERIAL
    entries = [entry(f"m{n}", f"{n:032x}", DATA_BEGIN + 4096 * n, 0) for n in range(MOST_MODELS)]
    forge(path, {"models": entries})
    with pytest.raises(StorageFull):
        on(disks, reserve("m", A))
    forge(path, {"models": [*entries, entry("more", A, DATA_BEGIN, 0)]})
    assert "models" in refused(disks)


def entry(name: str, model: str, offset: int, length: int, **changes: Any) -> dict[str, Any]:
    stretch = {"offset": offset, "length": length}
    empty = {"offset": offset, "length": 0}
    return {"name": name, "model": model, "unfinished": False, "part": stretch, "header": empty, "manifest": empty,
            **changes}


def forge(path: Path, directory: object, **superblock: Any) -> None:
    """Both copies of what anybody could write to a drive: the checksums are right, the rest is as told."""
    raw = directory if isinstance(directory, bytes) else json.dumps(directory).encode()
    with path.open("r+b") as file:
        for generation in (7, 8):
            made = Superblock(generation, "0" * 32, SERIAL, 16 * MIB, AREAS[generation % 2], len(raw),
                              xxhash.xxh3_64_intdigest(raw))
            file.seek(AREAS[generation % 2])
            file.write(raw)
            file.seek(generation % 2 * BLOCK)
            file.write(replace(made, **superblock).packed())


def refused(disks: Disks) -> str:
    with pytest.raises(BadVolume) as error:
        on(disks, lambda file: read_volume(file, SERIAL))
    assert error.value.hint and len(str(error.value)) < 2000
    str(error.value).encode()
    return str(error.value)


GOOD = entry("m", A, DATA_BEGIN, 4096)
DIRECTORIES: dict[str, object] = {
    "nothing": b"", "no JSON": b"{", "no UTF-8": b"\xff", "not ours": [], "null": None, "NaN": b"NaN",
    "nested": b"[" * 100_000, "a number of 10 kB": b'{"models": ' + b"9" * 10_000 + b"}",
    "a key too many": {"models": [], "evil": 1}, "a key with half a character": b'{"\\ud800": 1}',
    "overlap": {"models": [GOOD, entry("n", B, DATA_BEGIN, 8192)]},
    "overlap within": {"models": [{**GOOD, "header": {"offset": DATA_BEGIN, "length": 4096}}]},
    "one import twice": {"models": [GOOD, entry("n", A, DATA_BEGIN + MIB, 4096)]},
    "past the end": {"models": [entry("m", A, 16 * MIB - 4096, 8192)]},
    "far away": {"models": [entry("m", A, 1 << 61, 4096)]},
    "beyond 64 bits": {"models": [entry("m", A, 1 << 70, 4096)]},
    "negative": {"models": [entry("m", A, -4096, 4096)]},
    "a negative length": {"models": [entry("m", A, DATA_BEGIN, -4096)]},
    "in the superblock": {"models": [entry("m", A, 0, 4096)]},
    "in the directory": {"models": [entry("m", A, MIB, 4096)]},
    "off the alignment": {"models": [entry("m", A, DATA_BEGIN + 512, 4096)]},
    "a length off the alignment": {"models": [entry("m", A, DATA_BEGIN, 1)]},
    "a name that is a path": {"models": [entry("../m", A, DATA_BEGIN, 4096)]},
    "a name of two lines": {"models": [entry("m\n", A, DATA_BEGIN, 4096)]},
    "no identifier": {"models": [entry("m", "A" * 32, DATA_BEGIN, 4096)]},
    "a stretch less": {"models": [{key: value for key, value in GOOD.items() if key != "header"}]},
    "a million models": {"models": [1] * 200_000},
}


@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_directory_that_cannot_be_ours_is_refused(disks: Disks, what: str) -> None:
    forge(disks.directory / SERIAL, DIRECTORIES[what])
    refused(disks)


def test_the_forger_can_forge_what_is_taken(disks: Disks) -> None:
    forge(disks.directory / SERIAL, {"models": [GOOD]})
    assert names(disks) == [("m", A, False)]


SUPERBLOCKS: dict[str, dict[str, Any]] = {
    "a directory over the superblock": {"directory_offset": 0},
    "a directory at the drive's end": {"directory_offset": 16 * MIB - 4096},
    "a directory far away": {"directory_offset": (1 << 64) - 4096},
    "a directory of nothing": {"directory_length": 0},
    "a directory without end": {"directory_length": (1 << 64) - 1},
    "a directory of other bytes": {"directory_checksum": 1},
    "more bytes than the drive has": {"capacity": 1 << 60},
    "another drive's": {"serial": "OTHER"},
    "no serial": {"serial": ""},
}


@pytest.mark.parametrize("what", SUPERBLOCKS)
def test_a_superblock_that_cannot_be_ours_is_refused(disks: Disks, what: str) -> None:
    forge(disks.directory / SERIAL, {"models": []}, **SUPERBLOCKS[what])
    message = refused(disks)
    assert what != "another drive's" or "OTHER" in message


@pytest.mark.parametrize("generation", [(1 << 63) + 1, (1 << 64) - 1, (1 << 64) - 2])
def test_a_generation_after_which_none_can_come_is_refused(disks: Disks, generation: int) -> None:
    forge(disks.directory / SERIAL, {"models": []}, generation=generation)
    refused(disks)


def test_a_later_version_is_neither_blank_nor_read(disks: Disks) -> None:
    on(disks, blank)
    with (disks.directory / SERIAL).open("r+b") as file:
        file.seek(BLOCK)
        block = bytearray(file.read(BLOCK))
        block[8] = 2
        block[-CHECKSUM.size :] = CHECKSUM.pack(xxhash.xxh3_64_intdigest(bytes(block[: -CHECKSUM.size])))
        file.seek(BLOCK)
        file.write(block)
    assert "version 2" in refused(disks)


def test_a_damaged_volume_is_not_taken_for_a_blank_drive(disks: Disks) -> None:
    """An import would write over its models."""
    on(disks, blank)
    on(disks, reserve("m", A))
    with (disks.directory / SERIAL).open("r+b") as file:
        for number in range(2):
            file.seek(number * BLOCK + 100)
            file.write(b"\1")
        file.seek(0)
        assert file.read(len(MAGIC)) == MAGIC
    assert "zeros" in refused(disks)


FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=examples(300),
                suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.integers(0, 2 * BLOCK - 1), st.binary(min_size=1, max_size=64), st.booleans())
def test_any_bytes_in_place_of_a_superblock(tmp_path_factory: pytest.TempPathFactory, where: int, what: bytes,
                                            signed: bool) -> None:
    disks = Disks(tmp_path_factory.mktemp("fuzz"))
    path = disks.add(SERIAL)
    forge(path, {"models": [GOOD]})
    with path.open("r+b") as file:
        file.seek(where)
        file.write(what)
        for number in range(2 if signed else 0):
            file.seek(number * BLOCK)
            body = file.read(BLOCK - CHECKSUM.size)
            file.seek(number * BLOCK + len(body))
            file.write(CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)))
    try:
        assert names(disks) == [("m", A, False)]
    except BadVolume as error:
        str(error).encode()
    path.unlink()
