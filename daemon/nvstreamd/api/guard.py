"""May this caller use this method now, and is there a share of the daemon left for them?"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from nvdma.heap import trim
from nvstreamd.api.context import Context, when_over
from nvstreamd.api.peer import Peer, of_call
from nvstreamd.api.permissions import STANDARD, Permissions
from nvstreamd.errors import Draining
from nvstreamd.supervisor.pace import Pace
from nvstreamd.supervisor.pools import Pool

STATUS = "nvstream.v1.Status/GetStatus"
# Of one user while nobody else wants any; see Pool.
MOST_CALLS = 256
MOST_BYTES = 48 << 20
CALLS_A_SECOND, CALLS_AT_ONCE = 200, 256
# Messages of one user that are on their way at once.
MOST_RECEIVING = 2
# Calls of one user that bring many messages (reflection): each may hold a message that nobody has counted yet.
MOST_STREAMING = 4
LET_GO_BYTES, LET_GO_ROUNDS = 4 << 20, 3


class Guard:
    """Checks calls and counts those that are open. After `drain` no new ones begin, but for a look at the status."""

    def __init__(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self.draining = False
        self.calls = Pool("open calls", MOST_CALLS, "end some first")
        self.streaming = Pool("open reflection calls", MOST_STREAMING, "end some first")
        self.bytes = Pool("bytes in open requests", MOST_BYTES, "let some of them end, or send less")
        self.pace = Pace(CALLS_A_SECOND, CALLS_AT_ONCE)
        self.open_calls = 0
        self._receiving: dict[int, tuple[asyncio.Semaphore, set[object]]] = {}
        self._received = self._rounds = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self, context: Context, method: str) -> Peer:
        """The caller, when there may be one more call of theirs. Raises PermissionDenied, Draining, QuotaExceeded."""
        peer = of_call(context.peer())
        self.permissions.check(method, peer)
        if self.draining and method != STATUS:
            raise Draining("the daemon is shutting down", "try again when it is back")
        when_over(context, self.calls.take(peer.share))
        # What others only watch by never ends: a drain does not wait for it.
        if not method.startswith(STANDARD):
            self._count(context)
        return peer

    def _count(self, context: Context) -> None:
        self.open_calls += 1
        self._idle.clear()

        def ended() -> None:
            self.open_calls -= 1
            if not self.open_calls:
                self._idle.set()

        when_over(context, ended)

    def admit_streaming(self, context: Context, method: str) -> Peer:
        """`admit` for a call that may bring any number of messages."""
        peer = self.admit(context, method)
        when_over(context, self.streaming.take(peer.share))
        return peer

    def charge(self, context: Context, peer: Peer, size: int) -> None:
        """Counts the bytes of a request for as long as its call is open. Raises QuotaExceeded."""
        self._received += size
        when_over(context, self.bytes.take(peer.share, size))

    def let_go(self) -> None:
        """Frees large requests that are over: an error refers to frames that refer to it, and so keeps what they held.

        The collector itself counts objects, not bytes, and would not come for hours.
        """
        if self._received > LET_GO_BYTES:
            # Of what is under way now the rest is let go later, when it has ended.
            self._received, self._rounds = 0, LET_GO_ROUNDS
        if self._rounds:
            self._rounds -= 1
            gc.collect()
            trim()

    @asynccontextmanager
    async def receiving(self, peer: Peer) -> AsyncIterator[None]:
        """Waits until the caller may send a message."""
        turns, waiting = self._receiving.setdefault(peer.share, (asyncio.Semaphore(MOST_RECEIVING), set()))
        token = object()
        waiting.add(token)
        try:
            async with turns:
                yield
        finally:
            waiting.discard(token)
            if not waiting:
                del self._receiving[peer.share]

    async def drain(self, seconds: float) -> int:
        """Refuses calls from now on and waits for the open ones; returns how many were still open after `seconds`."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self.open_calls
