"""Which socket is dialled, and which sizes are understood?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvstream import address
from nvstream.sizes import format_bytes, format_seconds, parse_size


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Where the system's socket would be."""
    return tmp_path / "system.sock"


def test_the_argument_wins(system: Path) -> None:
    assert address.socket_path("/a", {"NVSTREAM_SOCKET": "/b"}, system) == Path("/a")
    assert address.socket_path("unix:/a", {}, system) == Path("/a")


def test_then_the_environment(system: Path) -> None:
    system.touch()
    assert address.socket_path(None, {"NVSTREAM_SOCKET": "/b", "XDG_RUNTIME_DIR": "/c"}, system) == Path("/b")


def test_then_the_systems_if_it_exists(system: Path) -> None:
    own = {"XDG_RUNTIME_DIR": "/c", "NVSTREAM_SOCKET": ""}
    assert address.socket_path(None, own, system) == Path("/c/nvstreamd/nvstreamd.sock")
    system.touch()
    assert address.socket_path(None, own, system) == system


def test_without_a_runtime_directory_it_is_ones_own_in_tmp(system: Path, tmp_path: Path) -> None:
    own = tmp_path / f"nvstreamd-{os.getuid()}"
    own.mkdir(0o700)
    assert address.socket_path(None, {}, system, tmp_path) == own / "nvstreamd" / "nvstreamd.sock"


def test_a_directory_in_tmp_that_others_arranged_is_not_trusted(system: Path, tmp_path: Path) -> None:
    assert address.socket_path(None, {}, system, tmp_path) == system
    own = tmp_path / f"nvstreamd-{os.getuid()}"
    own.symlink_to(tmp_path)
    assert address.socket_path(None, {}, system, tmp_path) == system
    own.unlink()
    own.mkdir()
    own.chmod(0o777)
    assert address.socket_path(None, {}, system, tmp_path) == system


def test_the_systems_socket_is_where_systemd_puts_it() -> None:
    assert str(address.SYSTEM_SOCKET) == "/run/nvstreamd/nvstreamd.sock"


def test_relative_paths_become_absolute(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address.socket_path("s", {}, system) == tmp_path / "s"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("60MiB", 60 << 20),
        ("1.5GiB", 3 << 29),
        ("1000000", 1_000_000),
        ("200 MB", 200_000_000),
        ("2kib", 2048),
        ("0", 0),
        ("1TiB", 1 << 40),
        (17, 17),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "60M", "60Mi", "-1", "0.5", "1e9", "60 MiB each", "nan", -1])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"size|unit|whole"):
        parse_size(text)


def test_figures_for_people() -> None:
    assert [format_bytes(one) for one in (0, 1023, 1536, 60 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "60.0 MiB",
        "3.0 TiB",
    ]
    assert [format_seconds(one) for one in (0, 2e-4, 0.0125, 3.21, 303, 7500)] == [
        "0.00 s",
        "200 us",
        "12.5 ms",
        "3.21 s",
        "5 min 03 s",
        "2 h 05 min",
    ]
