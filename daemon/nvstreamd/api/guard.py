"""What does every call pass before its own code runs? Identity, permission, and whether the daemon takes calls."""

from __future__ import annotations

import logging

from nvstreamd.api.context import Context
from nvstreamd.api.peer import Peer, of_call
from nvstreamd.api.permissions import Permissions
from nvstreamd.errors import Draining

log = logging.getLogger(__name__)


class Guard:
    """Checks calls. After `drain` no new ones begin."""

    def __init__(self, permissions: Permissions) -> None:
        self.permissions = permissions
        self.draining = False

    def drain(self) -> None:
        """Refuses calls from now on."""
        self.draining = True

    def admit(self, context: Context, method: str) -> Peer:
        """The caller, when it may call `method` now. Raises PermissionDenied or Draining."""
        peer = of_call(context.peer())
        self.permissions.check(method, peer)
        if self.draining:
            raise Draining("the daemon is shutting down", "try again when it is back")
        return peer
