"""How much work is in a piece of what a client sends, beside its bytes? As many frames of HTTP/2 as begin in it. Pure.

Whatever a frame asks for, a call, its end or an echo, is done before anything of ours hears of it.
"""

from __future__ import annotations

# RFC 9113: the connection preface, the frame header, and the kind of frame that begins a call.
PREFACE_BYTES = 24
HEADER_BYTES = 9
HEADERS = 1
# A call that is refused, or taken back at once, costs about as much as this many other frames.
WORK_OF_A_CALL = 5


class Frames:
    """Follows one connection, from its first byte on."""

    def __init__(self) -> None:
        # Bytes until the next frame's header, and what is there of one.
        self._skip = PREFACE_BYTES
        self._header = b""

    def work(self, data: bytes) -> int:
        """Frames that begin in the next piece of the connection; one that begins a call counts as some."""
        found, at = 0, 0
        while True:
            passed = min(self._skip, len(data) - at)
            at += passed
            self._skip -= passed
            missing = HEADER_BYTES - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) < HEADER_BYTES:
                return found
            found += WORK_OF_A_CALL if self._header[3] == HEADERS else 1
            self._skip = int.from_bytes(self._header[:3], "big")
            self._header = b""
