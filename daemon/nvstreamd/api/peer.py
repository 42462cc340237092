"""Who is calling? The kernel's word (SO_PEERCRED), carried through grpcio in the name of the upstream socket."""

from __future__ import annotations

import grp
import os
import pwd
import re
import socket
import struct
from dataclasses import dataclass
from urllib.parse import unquote

from nvstreamd.errors import PermissionDenied

UCRED = struct.Struct("3i")
NAME = re.compile(r"u(?P<uid>\d{1,10})-g(?P<gid>\d{1,10})(?:-s(?P<owner>\d{1,10}))?-\d+\.peer")


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller: uid and primary gid of the process that connected. `owner` may become them (supervisor.owners)."""

    uid: int
    gid: int
    owner: int | None = None

    @property
    def share(self) -> int:
        """The uid whose share of the daemon the caller uses."""
        return self.uid if self.owner is None else self.owner

    def in_group(self, name: str) -> bool:
        """True when the caller's user belongs to that group now."""
        try:
            wanted = grp.getgrnam(name).gr_gid
            user = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return False
        return wanted in os.getgrouplist(user, self.gid)


def credentials(connection: socket.socket) -> Peer:
    """The other end of a Unix socket, as the kernel knows it: unix(7), SO_PEERCRED."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    _, uid, gid = UCRED.unpack(raw)
    return Peer(uid, gid)


def upstream_name(peer: Peer, number: int) -> str:
    """The file name that carries a caller's identity to `of_call`."""
    return f"u{peer.uid}-g{peer.gid}{'' if peer.owner is None else f'-s{peer.owner}'}-{number}.peer"


# Of the last of a great many connections.
LONGEST_NAME = len(upstream_name(Peer((1 << 32) - 1, (1 << 32) - 1), 10**12))


def of_call(grpc_peer: str) -> Peer:
    """The caller of a gRPC call, from context.peer(). Raises PermissionDenied when the front did not name it."""
    match = NAME.search(unquote(grpc_peer).rpartition("/")[2])
    if match is None:
        raise PermissionDenied("the caller is unknown", "connect through the daemon's public socket")
    return Peer(int(match["uid"]), int(match["gid"]), None if match["owner"] is None else int(match["owner"]))
