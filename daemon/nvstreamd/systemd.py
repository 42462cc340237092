"""What does the service manager give and hear? Sockets and readiness: sd_listen_fds(3), sd_notify(3)."""

from __future__ import annotations

import os
import socket

FIRST_FD = 3


def listening_socket() -> socket.socket | None:
    """The socket that systemd passed, None when the daemon was not activated by one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(FIRST_FD, False)
    return socket.socket(fileno=FIRST_FD)


def notify(state: str) -> None:
    """Tells the service manager, for instance READY=1; does nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
