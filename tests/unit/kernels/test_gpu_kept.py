"""Does what was compiled stay where nobody else may write, in bounds, and beside other engines?"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Barrier, Thread

import pytest

from nvstreamd.kernels.gpu_kept import MOST_FILES, Kept

IMAGE = b"\x7fELF of a card"


def test_what_is_kept_is_there_for_the_next_engine(tmp_path: Path) -> None:
    assert Kept(tmp_path).read("unit") is None
    Kept(tmp_path).write("unit", IMAGE)
    assert Kept(tmp_path).read("unit") == IMAGE


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_is_not_used_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """Whoever may write there could give the card code of theirs."""
    Kept(tmp_path).write("unit", IMAGE)
    tmp_path.chmod(mode)
    kept = Kept(tmp_path)
    assert kept.read("unit") is None
    kept.write("other", IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]
    assert caplog.text.count(f"compiled kernels are not kept in {tmp_path}") == 1
    assert "others may write it" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder or a file to somebody else")
def test_what_is_somebody_elses_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Kept(tmp_path).write("unit", IMAGE)
    os.chown(tmp_path / "unit", 65534, 65534)
    assert Kept(tmp_path).read("unit") is None and "unit is none of our files" in caplog.text
    os.chown(tmp_path, 65534, 65534)
    Kept(tmp_path).write("other", IMAGE)
    assert not (tmp_path / "other").exists() and "somebody else's" in caplog.text


def test_a_link_in_place_of_the_folder_or_a_file_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else engines would write wherever it leads, or read what is not theirs."""
    own, link = tmp_path / "own", tmp_path / "link"
    Kept(own).write("unit", IMAGE)
    link.symlink_to(own)
    Kept(link).write("other", IMAGE)
    assert Kept(link).read("unit") is None and [path.name for path in own.iterdir()] == ["unit"]
    assert f"not kept in {link}" in caplog.text
    (own / "unit").rename(tmp_path / "elsewhere")
    (own / "unit").symlink_to(tmp_path / "elsewhere")
    assert Kept(own).read("unit") is None and "unit cannot be read" in caplog.text


def test_a_folder_that_cannot_be_made_is_said_and_nothing_else_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = Kept(tmp_path / "file/kept")
    kept.write("unit", IMAGE)
    assert kept.read("unit") is None and caplog.text.count("are not kept in") == 1


def test_the_folder_holds_a_bounded_number_of_files_those_used_last(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    names = [f"unit-{number:03}" for number in range(MOST_FILES)]
    for number, name in enumerate(names):
        (tmp_path / name).touch(mode=0o600)
        os.utime(tmp_path / name, (number, number))
    kept.write(names[0], IMAGE)
    os.utime(tmp_path / names[0], (0, 0))
    assert kept.read(names[0]) == IMAGE
    (tmp_path / "partial-of-an-engine-that-was-killed").touch()
    os.utime(tmp_path / "partial-of-an-engine-that-was-killed", (0, 0))
    kept.write("newest", IMAGE)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", *names} - {names[1]}


def test_engines_that_keep_the_same_at_once_leave_one_whole_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [bytes([number]) * 300_000 for number in range(4)]
    together = Barrier(len(images))

    def keep(image: bytes) -> None:
        kept = Kept(tmp_path)
        together.wait(10.0)
        for _ in range(20):
            kept.write("unit", image)
            assert kept.read("unit") in images

    threads = [Thread(target=keep, args=(image,)) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert Kept(tmp_path).read("unit") in images and not caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]
