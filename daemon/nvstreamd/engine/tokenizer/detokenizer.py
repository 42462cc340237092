"""When may the bytes of generated tokens be shown as text? Never in the middle of a code point."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns one stream of token ids into text, piece by piece.

    Bytes that are not UTF-8 become U+FFFD, exactly as `bytes.decode("utf-8", "replace")` of the whole would.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a code point is still open."""
        return self._decoder.decode(self._token_bytes(token_id))

    @property
    def pending(self) -> bool:
        """True while bytes of an unfinished code point are held back."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """The end of the text: an unfinished code point becomes U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
