"""Does the public socket take the place of a stale one, and of nothing else?"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvstreamd.api import upstream
from nvstreamd.api.front import public_socket
from nvstreamd.api.upstream import private_directory
from nvstreamd.errors import ConfigError
from support.daemon import DEADLINE, running


def test_everybody_may_connect_and_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run/nvstreamd.sock"
    public_socket(path).close()
    assert path.is_socket()
    with public_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "nvstreamd.sock"
    with public_socket(path):
        with pytest.raises(OSError) as refused:
            public_socket(path)
        assert refused.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("not a socket")
    with pytest.raises(OSError):
        public_socket(path)
    assert path.read_text() == "not a socket"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories go meanwhile; pytest's own name is too long for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="nvs") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


def test_a_path_that_is_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107") as error:
        public_socket(tmp_path / ("x" * 107))
    assert "--socket" in error.value.hint


def test_a_place_for_sockets_that_is_too_deep_says_so(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = temporary / ("x" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with ExitStack() as stack, pytest.raises(ConfigError, match="at most 107") as error:
        private_directory(stack)
    assert "TMPDIR" in error.value.hint and not list(deep.iterdir())


def test_what_a_killed_daemon_left_is_cleared_by_the_next_and_a_living_ones_stays(temporary: Path) -> None:
    """Each kill would leave a directory in /tmp for ever."""
    with ExitStack() as living:
        kept = private_directory(living)
        with running(temporary / "a") as daemon:
            (left,) = set(temporary.glob(f"{upstream.PREFIX}*")) - {kept}
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait(DEADLINE)
            assert list(left.iterdir()), "its sockets are still there"
        with running(temporary / "a"):
            now = set(temporary.glob(f"{upstream.PREFIX}*"))
            assert kept in now and left not in now and len(now) == 2
        assert set(temporary.glob(f"{upstream.PREFIX}*")) == {kept}
    assert not list(temporary.glob(f"{upstream.PREFIX}*"))


@pytest.mark.parametrize("trap", ["a link", "a directory open to others", "a file in it"])
def test_nothing_else_of_that_name_is_removed(temporary: Path, trap: str) -> None:
    victim = temporary / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    name = temporary / f"{upstream.PREFIX}x"
    if trap == "a link":
        name.symlink_to(victim)
    else:
        name.mkdir(0o777)
        name.chmod(0o700 if trap == "a file in it" else 0o777)
        (name / "precious").touch()
    with ExitStack() as stack:
        private_directory(stack)
    assert (name / "precious").exists() and (victim / "precious").exists()


def test_a_daemon_that_ends_leaves_its_successors_socket(temporary: Path) -> None:
    """Someone removed the socket's file, and another daemon made it anew: that would be deaf from then on."""
    with ExitStack() as stack:
        with running(temporary / "a") as first:
            first.socket.unlink()
            second = stack.enter_context(running(temporary / "a"))
        assert first.process.returncode == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(second.socket))
    assert not os.path.lexists(temporary / "a/nvstreamd.sock")
