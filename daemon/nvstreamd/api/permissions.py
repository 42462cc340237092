"""Who may do what? One table; everything that is not in it is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nvstreamd.api.peer import Peer
from nvstreamd.errors import PermissionDenied

EVERYBODY, ADMINISTRATORS = "everybody", "administrators"

TABLE = {
    "nvstream.v1.Inference/Generate": EVERYBODY,
    "nvstream.v1.Inference/Chat": EVERYBODY,
    "nvstream.v1.Inference/Tokenize": EVERYBODY,
    "nvstream.v1.Models/List": EVERYBODY,
    "nvstream.v1.Models/Get": EVERYBODY,
    "nvstream.v1.Models/Import": ADMINISTRATORS,
    "nvstream.v1.Models/Load": ADMINISTRATORS,
    "nvstream.v1.Models/Unload": ADMINISTRATORS,
    "nvstream.v1.Status/GetStatus": EVERYBODY,
}
# What grpcio's own services tell is everybody's to know.
STANDARD = ("grpc.health.v1.Health/", "grpc.reflection.v1alpha.ServerReflection/")


@dataclass(frozen=True, slots=True)
class Permissions:
    """Administrators are root, the daemon's own user, and members of `admin_group` if one is named."""

    admin_group: str | None

    def is_administrator(self, peer: Peer) -> bool:
        """True when the caller administers this daemon."""
        if peer.uid in (0, os.getuid()):
            return True
        return self.admin_group is not None and peer.in_group(self.admin_group)

    def check(self, method: str, peer: Peer) -> None:
        """Raises PermissionDenied unless the table lets the caller use `method` (service/method)."""
        allowed = EVERYBODY if method.startswith(STANDARD) else TABLE.get(method)
        if allowed == EVERYBODY or (allowed == ADMINISTRATORS and self.is_administrator(peer)):
            return
        group = f" or a member of group {self.admin_group}" if self.admin_group else ""
        raise PermissionDenied(f"uid {peer.uid} may not call {method}", f"ask root{group}")
