"""How does the caller's identity reach grpcio, which does not expose it?

The public socket belongs to this relay. It reads the kernel's credentials of each connection, binds its own upstream
socket to a file name that carries them, in a directory only the daemon can enter, and copies bytes both ways.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

from nvstreamd.api.frames import Frames
from nvstreamd.api.peer import Peer, credentials, upstream_name
from nvstreamd.errors import QuotaExceeded
from nvstreamd.places import check_length, make_room
from nvstreamd.supervisor.owners import Owners
from nvstreamd.supervisor.pace import Pace
from nvstreamd.supervisor.pools import Pool

log = logging.getLogger(__name__)
CHUNK = 1 << 16
# Of one user while nobody else wants any; each takes three descriptors and some 100 KiB.
MOST_CONNECTIONS = 128
CONNECTIONS_A_SECOND = 32
# Bytes that a user sends, over all connections: each costs the daemon, and an engine, time that is everybody's.
SENT_A_SECOND, SENT_AT_ONCE = 6 << 20, 16 << 20
# Of their frames as well: a ping has 17 bytes. What a client needs for 200 calls a second, twice.
FRAMES_A_SECOND, FRAMES_AT_ONCE = 2048, 8192
END_SECONDS = 1.0
# Connections that wait to be accepted, and how many are in one go: between two goes everything else has its turn.
WAITING, ACCEPTED_AT_ONCE = 128, 8


def public_socket(path: Path) -> socket.socket:
    """A listening socket at `path` that every user may connect to; a stale one is replaced.

    Raises OSError (EADDRINUSE) when a daemon already listens there, ConfigError where others could take it away, or
    where no socket can be for the length of the path.
    """
    check_length(path, "name a shorter one with --socket")
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
    listener.listen(WAITING)
    return listener


class Front:
    """Relays connections from `listener` to grpcio's socket at `upstream`."""

    def __init__(self, listener: socket.socket, upstream: Path, owners: Owners) -> None:
        self.owners = owners
        self.listener = listener
        self.upstream = upstream
        self.connections = Pool("connections", MOST_CONNECTIONS, "use one for many calls")
        self._connecting = Pace(CONNECTIONS_A_SECOND, MOST_CONNECTIONS)
        self._sending = Pace(SENT_A_SECOND, SENT_AT_ONCE)
        self._framing = Pace(FRAMES_A_SECOND, FRAMES_AT_ONCE)
        # Whose last connection was refused: that is said once, not as often as they try.
        self._refused: set[int] = set()
        self._numbers = count(1)
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self, stack: AsyncExitStack) -> None:
        """Accepts from now on; `stack` stops it, and ends every connection whatever its client does."""
        server = await asyncio.start_unix_server(self._accept, sock=self.listener, backlog=ACCEPTED_AT_ONCE)
        # asyncio has one number for both.
        self.listener.listen(WAITING)
        stack.push_async_callback(self._end)
        stack.callback(server.close)

    async def _end(self) -> None:
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        if relays:
            await asyncio.wait(relays, timeout=END_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = credentials(writer.get_extra_info("socket"))
        owner = self.owners.of(peer.uid)
        if owner != peer.uid:
            peer = replace(peer, owner=owner)
        try:
            give_back = self.connections.take(peer.share)
        except QuotaExceeded as error:
            # There is no message of ours before HTTP/2's: the client sees a connection that ends.
            if peer.share not in self._refused:
                self._refused.add(peer.share)
                log.warning("connections of uid %d are refused: %s", peer.uid, error)
            writer.transport.abort()
            return
        self._refused.discard(peer.share)
        relay = asyncio.create_task(self._relay(peer, reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)
        relay.add_done_callback(lambda _: give_back())

    async def _relay(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = self.upstream.parent / upstream_name(peer, next(self._numbers))
        ends = [writer]
        try:
            await self._connecting.take(peer.share)
            up_reader, up_writer = await self._connect(path)
            ends.append(up_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, up_writer, self._toll(peer)))
                both.create_task(_copy(up_reader, writer))
        except* OSError as errors:
            log.debug("a connection of uid %d ended: %s", peer.uid, errors.exceptions)
        except* asyncio.CancelledError:
            # What a client does not read is not waited for.
            for end in ends:
                end.transport.abort()
        finally:
            path.unlink(missing_ok=True)
            for end in ends:
                end.close()

    def _toll(self, peer: Peer) -> Callable[[bytes], Awaitable[None]]:
        """Waits until the next piece of one connection may go on."""
        frames = Frames()

        async def wait(data: bytes) -> None:
            await self._sending.take(peer.share, len(data))
            await self._framing.take(peer.share, frames.work(data))

        return wait

    async def _connect(self, name: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        upstream.bind(str(name))
        upstream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(upstream, str(self.upstream))
        return await asyncio.open_unix_connection(sock=upstream)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter,
                wait: Callable[[bytes], Awaitable[None]] | None = None) -> None:
    """Copies until the source ends, then ends the target, so that the other direction ends too."""
    while data := await source.read(CHUNK):
        if wait is not None:
            await wait(data)
        target.write(data)
        await target.drain()
    target.close()
