"""Does the public socket take the place of a stale one, and of nothing else?"""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

import pytest

from nvstreamd.api.front import public_socket


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
