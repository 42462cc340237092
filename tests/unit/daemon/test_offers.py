"""Is every model file offered under a name, or said to be passed over, however a directory of models is arranged?"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nvstreamd.names import is_name
from nvstreamd.supervisor import scan
from nvstreamd.supervisor.offers import Offers, Watched, offers_of
from nvstreamd.supervisor.scan import Scanner


def offered(*directories: Path, configured: dict[str, Path] | None = None) -> Offers:
    return offers_of(list((configured or {}).items()), Scanner(directories).scan())


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def packed(path: Path, file: str = "manifest.json") -> Path:
    put(path / file)
    return path


@pytest.mark.parametrize("name", ["Qwen3 8B (Q4).gguf", "C++-7b.gguf", "LOUD.GGUF", "Grüße-日本語.gguf", "a=b~c.Gguf"])
def test_files_are_offered_as_they_are_called(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name)
    assert offered(tmp_path).paths == {name[:-5]: path}


def test_files_in_directories_below_are_offered_and_hidden_ones_are_not(tmp_path: Path) -> None:
    deep = put(tmp_path / "publisher/model/q4.gguf")
    put(tmp_path / ".cache/half.gguf")
    put(tmp_path / ".hidden.gguf")
    put(tmp_path / "README.md")
    found = offered(tmp_path)
    assert (found.paths, found.notes) == ({"q4": deep}, ())


def test_a_name_is_the_same_however_its_accents_were_stored(tmp_path: Path) -> None:
    path = put(tmp_path / "Gru\u0308n.gguf")
    assert offered(tmp_path).paths == {"Grün": path}


@pytest.mark.parametrize("name", [b"\xff.gguf", b"a\x1b[2J.gguf", b"-rf.gguf", b" a.gguf", b"x" * 129 + b".gguf"])
def test_what_has_no_name_is_said(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).touch()
    found = offered(tmp_path)
    assert not found.paths and len(found.notes) == 1
    assert "is not offered" in found.notes[0] and found.notes[0].isprintable()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\nb", "a\0", "\u202egpj", "x" * 129, "ü" * 65,
                                  "\udcff"])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


def test_an_import_named_like_its_source_is_what_the_name_means(tmp_path: Path) -> None:
    """Else an import would be done, and never be used."""
    source, imported = put(tmp_path / "gguf/m.gguf"), packed(tmp_path / "store/m.nvs")
    found = offered(tmp_path / "store", tmp_path / "gguf")
    assert found.paths == {"m": imported, "m@gguf": source}
    assert len(found.notes) == 1 and str(source) in found.notes[0] and "m@gguf" in found.notes[0]


def test_the_configuration_comes_first_and_the_rest_stays_in_reach(tmp_path: Path) -> None:
    imported, chosen = packed(tmp_path / "store/m.nvs"), tmp_path / "elsewhere/m.gguf"
    found = offered(tmp_path / "store", configured={"m": chosen})
    assert found.paths == {"m": chosen, "m@store": imported}
    assert not offered(tmp_path / "store", configured={"m": imported}).notes


def test_a_third_of_a_name_is_said_not_to_be_offered(tmp_path: Path) -> None:
    for place in ("a/x", "b/x", "c/x"):
        put(tmp_path / place / "m.gguf")
    found = offered(tmp_path)
    assert found.paths == {"m": tmp_path / "a/x/m.gguf", "m@x": tmp_path / "b/x/m.gguf"}
    assert any(str(tmp_path / "c/x/m.gguf") in note and "not offered" in note for note in found.notes)


def test_a_split_model_is_one_and_without_its_first_part_none(tmp_path: Path) -> None:
    first = put(tmp_path / "big one-00001-of-00002.GGUF")
    put(tmp_path / "big one-00002-of-00002.GGUF")
    put(tmp_path / "torso-00002-of-00002.gguf")
    found = offered(tmp_path)
    assert found.paths == {"big one": first}
    assert len(found.notes) == 1 and "torso" in found.notes[0]


def test_a_failed_import_is_no_model_and_a_drives_parts_are_none(tmp_path: Path) -> None:
    unfinished = packed(tmp_path / "half.nvs", "journal.jsonl")
    packed(tmp_path / "parts.nvs", "part-1.bin")
    found = offered(tmp_path)
    assert (found.paths, found.unfinished) == ({}, {"half": unfinished})
    assert len(found.notes) == 1 and "half" in found.notes[0] and "run it again" in found.notes[0]


def test_a_link_to_a_directory_is_not_gone_into(tmp_path: Path) -> None:
    """It is the word of whoever made it, and would tell what another directory has."""
    put(tmp_path / "closed/secret.gguf")
    (tmp_path / "offered").mkdir()
    (tmp_path / "offered/door").symlink_to(tmp_path / "closed")
    assert not offered(tmp_path / "offered").paths


def test_a_directory_that_has_too_much_is_looked_at_in_part_and_said(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MOST_ENTRIES", 10)
    monkeypatch.setattr(scan, "DEEPEST", 3)
    for number in range(30):
        put(tmp_path / f"many/{number}.gguf")
    put(tmp_path / "deep/1/2/3/4/m.gguf")
    assert len(offered(tmp_path / "many").paths) <= 10
    for directory in (tmp_path / "many", tmp_path / "deep"):
        assert any(str(directory) in note for note in offered(directory).notes), directory


def test_notes_are_bounded(tmp_path: Path) -> None:
    for number in range(500):
        put(tmp_path / f"-{number}.gguf")
    notes = offered(tmp_path).notes
    assert len(notes) < 30 and "480 more" in notes[-1]


def test_what_changes_is_seen_by_the_next_look_and_the_rest_is_not_read_again(tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "old/a.gguf")
    packed(tmp_path / "old/half.nvs", "journal.jsonl")
    read: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda fd: read.append(os.readlink(f"/proc/self/fd/{fd}")) or scandir(fd))
    for directory in (tmp_path / "old", tmp_path):
        os.utime(directory, ns=(10**18, 10**18))
    watched = Watched([], [tmp_path])

    async def look() -> set[str]:
        return set((await watched.look()).paths)

    assert asyncio.run(look()) == {"a"}
    read.clear()
    assert asyncio.run(look()) == {"a"} and not read
    packed(tmp_path / "old/half.nvs")
    assert asyncio.run(look()) == {"a", "half"}
    put(tmp_path / "new/b.gguf")
    assert asyncio.run(look()) == {"a", "b", "half"}
    assert str(tmp_path / "old") not in read


def test_many_who_ask_at_once_each_see_what_was_there_when_they_asked(tmp_path: Path) -> None:
    watched = Watched([], [tmp_path])

    async def ask(number: int) -> bool:
        put(tmp_path / f"{number}.gguf")
        return str(number) in (await watched.look()).paths

    async def all_ask() -> list[bool]:
        return await asyncio.gather(*(ask(number) for number in range(50)))

    assert all(asyncio.run(all_ask()))
