"""Over which server and which of the two clients do the tests run?"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.client.drivers import AsyncDriver, SyncDriver
from unit.client.peer import Peer
from unit.client.terminal import standard_input


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """A shell's background jobs ignore SIGINT, and so would a command started by tests that are one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose name is short enough for a Unix socket; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="nvs") as name:
        yield Path(name)


@pytest.fixture
def peer(socket_dir: Path) -> Iterator[Peer]:
    """A scripted server."""
    server = Peer(socket_dir / "s")
    yield server
    server.close()


@pytest.fixture
def at_the_peer(monkeypatch: pytest.MonkeyPatch, socket_dir: Path) -> None:
    """Commands that run in this process dial the peer, and their standard input is empty and no terminal."""
    monkeypatch.setenv("NVSTREAM_SOCKET", str(socket_dir / "s"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdin", standard_input(b""))


@pytest.fixture(params=[SyncDriver, AsyncDriver], ids=["sync", "asyncio"])
def driver(request: pytest.FixtureRequest, socket_dir: Path) -> Iterator[SyncDriver | AsyncDriver]:
    """Each of the two clients, dialling the peer's socket."""
    made = request.param(socket_dir / "s")
    yield made
    made.close()
