"""How does a client behave that no library would? It writes HTTP/2 frames itself: RFC 9113, RFC 7541."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(window: int) -> bytes:
    """A SETTINGS frame: how many bytes of a stream the client takes before it asks for more."""
    return frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))


def headers(stream: int, path: str) -> bytes:
    """The beginning of a call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers",
              "content-type": "application/grpc"}
    return frame(HEADERS, END_HEADERS, stream, b"".join(_literal(name, value) for name, value in fields.items()))


def message(stream: int, packed: bytes = b"") -> bytes:
    """A call's only message."""
    return frame(DATA, END_STREAM, stream, struct.pack(">BI", 0, len(packed)) + packed)


def connect(path: Path) -> socket.socket:
    """A connection that has said nothing yet."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _literal(name: str, value: str) -> bytes:
    """A header field that no table keeps, of names and values shorter than 127 bytes: RFC 7541, 6.2.2."""
    return b"\0" + b"".join(bytes((len(text),)) + text.encode() for text in (name, value))
