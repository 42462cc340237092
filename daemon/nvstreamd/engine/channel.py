"""How does the engine hear and answer the daemon?"""

from __future__ import annotations

import socket
import threading

from nvstreamd.engine.commands import Command
from nvstreamd.engine.from_daemon import parsed
from nvstreamd.errors import NvstreamError, ProtocolError
from nvstreamd.wire.engine_pb2 import FromEngine
from nvstreamd.wire.failures import failure_of
from nvstreamd.wire.frames import HEADER, frame, length_of

MOST_DESCRIPTORS = 253


class Channel:
    """The engine's end of the socket pair. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, report: FromEngine) -> None:
        """Blocks until the daemon has room. Raises OSError when the daemon is gone."""
        with self._sending:
            self._socket.sendall(frame(report.SerializeToString()))

    def fail(self, error: NvstreamError, request: int = 0) -> None:
        """Reports an error, of a request or (0) of the engine."""
        self.send(FromEngine(failure=failure_of(error, request)))

    def receive_first(self) -> tuple[Command, list[int]]:
        """The command this engine was started for, with the descriptors that came with it. Raises ProtocolError."""
        header, fds, _, _ = socket.recv_fds(self._socket, HEADER.size, MOST_DESCRIPTORS)
        if not header:
            raise ProtocolError("the daemon closed the connection before it said what to do")
        header += self._exactly(HEADER.size - len(header)) or b""
        return parsed(self._exactly(length_of(header)) or b""), fds

    def receive(self) -> Command | None:
        """The next command, or None when the daemon is gone."""
        header = self._exactly(HEADER.size)
        body = None if header is None else self._exactly(length_of(header))
        return None if body is None else parsed(body)

    def _exactly(self, count: int) -> bytes | None:
        parts = []
        while count:
            try:
                part = self._socket.recv(min(count, 1 << 20))
            except ConnectionResetError:
                return None
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
