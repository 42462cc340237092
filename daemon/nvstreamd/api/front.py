"""How does the caller's identity reach grpcio, which does not expose it?

The public socket belongs to this relay. It reads the kernel's credentials of each connection, binds its own upstream
socket to a file name that carries them, in a directory only the daemon can enter, and copies bytes both ways.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

from nvstreamd.api.peer import credentials, upstream_name
from nvstreamd.places import make_room

log = logging.getLogger(__name__)
CHUNK = 1 << 16


def public_socket(path: Path) -> socket.socket:
    """A listening socket at `path` that every user may connect to; a stale one is replaced.

    Raises OSError (EADDRINUSE) when a daemon already listens there, ConfigError where others could take it away.
    """
    make_room(path.parent)
    # Anything that is no socket stays, and bind(2) refuses: the daemon is root and a typing error is soon made.
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chmod(path, 0o666)
    listener.listen(128)
    return listener


class Front:
    """Relays connections from `listener` to grpcio's socket at `upstream`."""

    def __init__(self, listener: socket.socket, upstream: Path) -> None:
        self.listener = listener
        self.upstream = upstream
        self._numbers = count(1)

    async def start(self, stack: AsyncExitStack) -> None:
        """Accepts from now on; `stack` stops it."""
        server = await asyncio.start_unix_server(self._relay, sock=self.listener)
        stack.callback(server.close)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = credentials(writer.get_extra_info("socket"))
        name = self.upstream.parent / upstream_name(peer, next(self._numbers))
        try:
            up_reader, up_writer = await self._connect(name)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, up_writer))
                    both.create_task(_copy(up_reader, writer))
            finally:
                up_writer.close()
        except* OSError as errors:
            log.debug("connection of uid %d ended: %s", peer.uid, errors.exceptions)
        finally:
            name.unlink(missing_ok=True)
            writer.close()

    async def _connect(self, name: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        upstream.bind(str(name))
        upstream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(upstream, str(self.upstream))
        return await asyncio.open_unix_connection(sock=upstream)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copies until the source ends, then ends the target, so that the other direction ends too."""
    while data := await source.read(CHUNK):
        target.write(data)
        await target.drain()
    target.close()
