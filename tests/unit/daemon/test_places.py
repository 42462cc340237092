"""Can anybody put himself between the daemon and its clients, by the directory of the socket?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvstreamd import config
from nvstreamd.api.front import public_socket
from nvstreamd.errors import ConfigError
from nvstreamd.places import make_room
from support.daemon import running


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """What stands in for a user's runtime directory; nobody has made it yet."""
    return tmp_path / "nvstreamd-own"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_whatever_the_umask_everybody_finds_the_socket_and_nobody_replaces_it(tmp_path: Path) -> None:
    public_socket(tmp_path / "run/nvstreamd/nvstreamd.sock").close()
    assert mode(tmp_path / "run") == mode(tmp_path / "run/nvstreamd") == 0o755


@pytest.mark.usefixtures("umask")
def test_in_tmp_the_directory_is_its_makers_alone(own: Path) -> None:
    for _ in range(2):
        make_room(own / "nvstreamd", own)
        assert mode(own) == 0o700


def test_what_somebody_else_made_in_tmp_is_refused(own: Path) -> None:
    elsewhere = own.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    own.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="is not a directory that is yours alone"):
        make_room(own / "nvstreamd", own)
    own.unlink()
    own.mkdir()
    own.chmod(0o777)
    with pytest.raises(ConfigError, match="is not a directory that is yours alone"):
        make_room(own / "nvstreamd", own)
    assert not list(elsewhere.iterdir()) and not list(own.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="NOT TESTED: a directory of another user's; needs root")
def test_what_another_user_made_in_tmp_is_refused(own: Path) -> None:
    own.mkdir(0o700)
    os.chown(own, 65534, 65534)
    with pytest.raises(ConfigError):
        make_room(own / "nvstreamd", own)


def test_a_directory_that_everybody_writes_is_refused_unless_it_is_sticky(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others can put a socket"):
        public_socket(tmp_path / "nvstreamd.sock")
    tmp_path.chmod(0o1777)
    public_socket(tmp_path / "nvstreamd.sock").close()


def test_an_ordinary_users_place_is_in_tmp_only_without_a_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert config.runtime_directory() == Path("/run/user/1234/nvstreamd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert config.runtime_directory() == Path("/tmp/nvstreamd-1234/nvstreamd")


def test_what_the_daemon_makes_is_nobody_elses_to_write(tmp_path: Path) -> None:
    """Started with a umask of 0: its engines inherit it, and what they import would be everybody's to change."""
    before = os.umask(0)
    try:
        tmp_path.joinpath("daemon").mkdir(0o755)
        with running(tmp_path / "daemon") as daemon:
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    finally:
        os.umask(before)
    assert "Umask:\t0022\n" in status
