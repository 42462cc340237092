"""How does a user's process reach the daemon? Over a connection of its own, with messages of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

SECONDS = 300.0
LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
         ("grpc.use_local_subchannel_pool", 1)]


@contextmanager
def channel(socket: str) -> Iterator[grpc.Channel]:
    """A connection of its own."""
    with grpc.insecure_channel(f"unix:{socket}", options=LARGE) as opened:
        yield opened
