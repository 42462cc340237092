"""Is a full disk told with what is needed, and does the same import go on once there is room?"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import pytest

from nvstreamd.errors import StorageFull
from nvstreamd.weights.packed.importer import Progress
from nvstreamd.weights.packed.manifest import ALIGNMENT
from support.shapes import tiny
from support.small_disk import needs_root, small_disk
from unit.weights.models import make
from unit.weights.stores import load_all, pack

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of three layers."""
    return make(tmp_path / "source.gguf", tiny(layers=3))


@needs_root
def test_a_full_disk_is_said_and_the_same_import_succeeds_once_there_is_room(tmp_path: Path, source: Path) -> None:
    with small_disk(tmp_path / "disk", MIB) as disk:
        (disk / "ballast").write_bytes(bytes(900 << 10))
        with pytest.raises(StorageFull, match=r"disk/m\.nvs.*MiB") as full:
            pack(source, [disk])
        assert "same import again" in full.value.hint
        (disk / "ballast").unlink()
        assert load_all(pack(source, [disk])) == load_all(source)


@needs_root
def test_a_disk_that_fills_up_during_the_import(tmp_path: Path, source: Path) -> None:
    """The weights have their space from the start; journal, header and manifest find none."""
    with small_disk(tmp_path / "disk", MIB) as disk:
        def hog(progress: Progress) -> None:
            with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as out:
                while out.write(bytes(ALIGNMENT)):
                    pass

        with pytest.raises(StorageFull, match="disk"):
            pack(source, [disk], hog)
        (disk / "ballast").unlink()
        seen: list[Progress] = []
        assert load_all(pack(source, [disk], seen.append)) == load_all(source)
        assert seen[-1].resumed


@needs_root
def test_an_import_that_finds_no_space_leaves_the_older_model_whole(tmp_path: Path, source: Path) -> None:
    with small_disk(tmp_path / "disk", MIB) as disk:
        store = pack(source, [disk])
        before = load_all(store)
        larger = make(tmp_path / "larger.gguf", tiny(width=256))
        with pytest.raises(StorageFull):
            pack(larger, [disk])
        assert load_all(store) == before


def test_a_file_too_large_is_a_full_disk(tmp_path: Path, source: Path) -> None:
    homes = [tmp_path / "drive0", tmp_path / "drive1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(StorageFull, match="drive0") as full:
            pack(source, homes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "MiB" in full.value.message and full.value.hint
    assert load_all(pack(source, homes)) == load_all(source)
