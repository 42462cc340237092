"""Is what lies on a drive read only while it is what was imported there, wherever a manifest may point?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvstreamd.errors import BadModelFile, BadVolume, ModelChanged, NotFound, NvstreamError
from support.shapes import tiny
from unit.weights.disks import PAIR, Disks
from unit.weights.models import look, make, model_at
from unit.weights.stores import edit, load_all, pack, written_before


def test_another_drive_in_its_place_is_noticed(tmp_path: Path, source: Path, disks: Disks) -> None:
    store = disks.pack(source, tmp_path / "store", PAIR)
    disks.add("FAST")
    with pytest.raises(ModelChanged, match="nothing of nvstreamd's") as blank:
        look(store, disks)
    disks.pack(source, tmp_path / "elsewhere", ["FAST"])
    with pytest.raises(ModelChanged, match="FAST") as other:
        look(store, disks)
    (disks.directory / "FAST").unlink()
    with pytest.raises(NotFound, match="FAST"):
        look(store, disks)
    assert all("import the model again" in error.value.hint for error in (blank, other))


def test_a_copy_of_a_drive_is_not_the_drive(tmp_path: Path, source: Path, disks: Disks) -> None:
    """Two of them would both be written, and neither would be what the other's store says."""
    disks.pack(source, tmp_path / "store", ["FAST"])
    (disks.directory / "SLOW").write_bytes((disks.directory / "FAST").read_bytes())
    with pytest.raises(BadVolume, match="copy of drive FAST"):
        disks.pack(source, tmp_path / "store", ["SLOW"])


def test_a_model_in_use_notices_that_its_place_is_gone(tmp_path: Path, source: Path, disks: Disks) -> None:
    store = disks.pack(source, tmp_path / "store", PAIR)
    other = make(tmp_path / "other.gguf", tiny(layers=1))
    with model_at(store, disks) as model:
        disks.pack(other, tmp_path / "store", PAIR, name="other")
        for file in model.data:
            file.check_unchanged()
        disks.pack(other, tmp_path / "store", PAIR)
        with pytest.raises(ModelChanged, match=r"FAST.*not on it any more") as error:
            model.data[0].check_unchanged()
    assert error.value.hint


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_flipped_bit_on_a_drive_is_noticed_with_drive_and_segment(tmp_path: Path, source: Path, disks: Disks,
                                                                    place: str) -> None:
    store = disks.pack(source, tmp_path / "store", PAIR)
    with model_at(store, disks) as model:
        segment = model.manifest.segments[1]
    extent = segment.extents[-1]
    with (disks.directory / PAIR[extent.file]).open("r+b") as disk:
        where = extent.offset if place == "first" else extent.offset + extent.length - 1
        byte = os.pread(disk.fileno(), 1, where)[0]
        os.pwrite(disk.fileno(), bytes([byte ^ 1]), where)
    with pytest.raises(BadModelFile, match=f"{PAIR[extent.file]}.*layer.1"):
        load_all(store, drives=disks)


def drive(stored: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = stored["parts"][0]
    return part


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another stretch": lambda s: drive(s).update(offset=drive(s)["offset"] + 4096),
    "a longer one": lambda s: (drive(s).update(size=drive(s)["size"] + 4096),
                               s["part_bytes"].__setitem__(0, drive(s)["size"])),
    "another model's": lambda s: drive(s).update(model="0" * 32),
    "another volume": lambda s: drive(s).update(volume="0" * 32),
    "the superblock": lambda s: drive(s).update(offset=0),
    "past the drive": lambda s: drive(s).update(offset=1 << 50),
    "off the alignment": lambda s: drive(s).update(offset=drive(s)["offset"] + 1),
    "a size that is not the part's": lambda s: drive(s).update(size=0),
    "no probes": lambda s: drive(s).update(probes=[]),
    "probes of something else": lambda s: drive(s)["probes"][0].update(length=4096),
    "a probe that is none": lambda s: drive(s)["probes"][0].update(digest="x"),
    "namespace 0": lambda s: drive(s).update(nsid=0),
    "a serial of 21 characters": lambda s: drive(s).update(serial="x" * 21),
    "a serial that is a path": lambda s: drive(s).update(serial="../../etc/passwd"),
    "no serial": lambda s: drive(s).pop("serial"),
    "a key too many": lambda s: drive(s).update(evil=1),
    "a part of nothing": lambda s: s["parts"].__setitem__(0, None),
    "a part that is a number": lambda s: s["parts"].__setitem__(0, 7),
    "drives in version 1": lambda s: s.update(version=1),
    "no sources": lambda s: s.update(sources=[]),
    "a relative source": lambda s: s["sources"][0].update(path="source.gguf"),
    "a source above": lambda s: s["sources"][0].update(path="/tmp/../etc/shadow"),
    "a source with a zero": lambda s: s["sources"][0].update(path="/tmp/a\0b"),
    "many sources": lambda s: s.update(sources=s["sources"] * 1000),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_cannot_lead_to_another_place_on_a_drive(tmp_path: Path, source: Path, disks: Disks,
                                                            what: str) -> None:
    """Whoever writes a manifest must not read through it what other models, or the drive's owner, keep there."""
    store = disks.pack(source, tmp_path / "store", PAIR)
    edit(store, CHANGES[what])
    with pytest.raises((BadModelFile, ModelChanged, NotFound)) as error:
        look(store, disks)
    assert error.value.hint and isinstance(error.value, NvstreamError)


def test_a_store_of_version_1_is_still_read(tmp_path: Path, source: Path) -> None:
    store = pack(source, [tmp_path / "a", tmp_path / "b"])
    written_before(store, 1)
    assert load_all(store) == load_all(source)
    with model_at(store) as model:
        assert model.manifest.sources == () and model.manifest.homes == (None, None)
