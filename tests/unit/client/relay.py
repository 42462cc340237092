"""What does a client see when the connection breaks? A relay of bytes that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from unit.client.peer import PATIENCE


class Relay:
    """Copies bytes between one client and a server, until it is cut."""

    def __init__(self, path: Path, server: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(server))
        self._client: socket.socket | None = None
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Breaks the connection, as the kernel does for a process that died; no new one is taken."""
        self._listener.close()
        for end in (self._server, self._client):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        self._client, _ = self._listener.accept()
        self._threads.append(threading.Thread(target=self._copy, args=(self._server, self._client)))
        self._threads[-1].start()
        self._copy(self._client, self._server)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
