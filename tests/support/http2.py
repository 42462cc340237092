"""How does a test say to a gRPC server what no client would? Frames of HTTP/2 by hand: RFC 9113, RFC 7541, Unix socket.

Header fields are written as literals without indexing or Huffman's code; nothing that the server says is decoded but
the frames around it, and the bytes of its trailers, in which `grpc-status` is looked for by its peers' own words.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
CANCEL: Final = 8
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADERS = range(1, 7)

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; names of parameters in small letters."""
    pairs = b"".join(struct.pack(">HI", globals()[name.upper()], value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, pairs)


def packed(fields: Fields) -> bytes:
    """Header fields: RFC 7541, 6.2.2, literals that are not indexed."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _integer(len(raw)) + raw


def _integer(value: int) -> bytes:
    """RFC 7541, 5.1, with a prefix of 7 bits."""
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def request_fields(path: str, *more: tuple[str, str], content_type: str = "application/grpc") -> list[tuple[str, str]]:
    """What a gRPC client sends before its message."""
    return [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", content_type), *more]


def message(body: bytes, length: int | None = None, compressed: int = 0) -> bytes:
    """A gRPC message with its prefix, whose `length` may lie."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def headers(path: str, stream: int = 1, fields: Fields | None = None) -> bytes:
    """The beginning of a call."""
    return frame(HEADERS, END_HEADERS, stream, packed(fields or request_fields(path)))


def call_frames(path: str, body: bytes, stream: int = 1, end: bool = True, fields: Fields | None = None) -> bytes:
    """A whole call: headers and one frame of data for each 16 KiB."""
    cut = [body[start : start + (1 << 14)] for start in range(0, len(body), 1 << 14)] or [b""]
    pieces = [frame(DATA, END_STREAM if end and number == len(cut) - 1 else 0, stream, part)
              for number, part in enumerate(cut)]
    return b"".join([headers(path, stream, fields), *pieces])


@dataclass(frozen=True, slots=True)
class Frame:
    """What the server said."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """A connection to the socket at `path`. What is sent to an end that has closed is lost without a word."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(str(path))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *pieces: bytes) -> bool:
        """Sends bytes; False when the server takes no more."""
        try:
            self._socket.sendall(b"".join(pieces))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            return False
        return True

    def open(self, **values: int) -> bool:
        """The preface and the first settings."""
        return self.send(PREFACE, settings(**values))

    def end(self) -> None:
        """Says that nothing more comes."""
        self._socket.shutdown(socket.SHUT_WR)

    def frames(self) -> Iterator[Frame]:
        """What the server says, until it closes or is silent for too long (TimeoutError). Settings are acknowledged."""
        while (head := self._exactly(9)) is not None:
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            body = self._exactly(length)
            if body is None:
                return
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0))
            yield Frame(kind, flags, stream, body)

    def until_end_of(self, stream: int) -> list[Frame]:
        """What the server says until that stream has ended, by either side's word, or the connection has."""
        found = []
        for each in self.frames():
            found.append(each)
            if each.kind == GOAWAY or (each.stream == stream and (
                    each.kind == RST_STREAM or (each.kind in (DATA, HEADERS) and each.flags & END_STREAM))):
                return found
        return found

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except ConnectionResetError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
