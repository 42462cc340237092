"""How is a message framed on the socket pair? Four bytes of length, big endian, then the protobuf message."""

from __future__ import annotations

import struct

from nvstreamd.errors import ProtocolError

HEADER = struct.Struct(">I")
# A prompt of a million characters fits many times over; a corrupt length does not.
LARGEST = 64 << 20


def frame(message: bytes) -> bytes:
    """The message with its length before it. Raises ProtocolError when it is too large."""
    if len(message) > LARGEST:
        raise ProtocolError(f"a message of {len(message)} bytes is larger than {LARGEST}")
    return HEADER.pack(len(message)) + message


def length_of(header: bytes) -> int:
    """The length that a header announces. Raises ProtocolError when it is too large."""
    length: int = HEADER.unpack(header)[0]
    if length > LARGEST:
        raise ProtocolError(f"a message of {length} bytes is announced, at most {LARGEST} are accepted")
    return length
