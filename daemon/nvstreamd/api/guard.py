"""What does every call pass before its own code runs? Identity, permission, and whether the daemon takes calls."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from nvstreamd.api.context import Context, when_over
from nvstreamd.api.peer import Peer, of_call
from nvstreamd.api.permissions import Permissions
from nvstreamd.errors import Draining

STATUS = "nvstream.v1.Status/GetStatus"


class Guard:
    """Checks calls and counts those that are open. After `drain` no new ones begin, but for a look at the status."""

    def __init__(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self.draining = False
        self.open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self, context: Context, method: str) -> Peer:
        """The caller, when it may call `method` now. Raises PermissionDenied or Draining."""
        peer = of_call(context.peer())
        self.permissions.check(method, peer)
        if self.draining and method != STATUS:
            raise Draining("the daemon is shutting down", "try again when it is back")
        self.open_calls += 1
        self._idle.clear()
        when_over(context, self._ended)
        return peer

    def _ended(self) -> None:
        self.open_calls -= 1
        if not self.open_calls:
            self._idle.set()

    async def drain(self, seconds: float) -> int:
        """Refuses calls from now on and waits for the open ones; returns how many were still open after `seconds`."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self.open_calls
