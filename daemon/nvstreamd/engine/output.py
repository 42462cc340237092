"""Which tokens and which text may the client see now?

Held back: tokens whose last bytes are no whole code point yet, and text that may become a stop string. What is
released is always whole tokens, so that the tokens already sent describe a stream completely (see supervisor.replay).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.engine.tokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens with their text. `stop` is the stop string that ended the text, if one did."""

    tokens: tuple[int, ...]
    text: str
    stop: str | None = None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the earliest stop string begins, and which it is."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found, key=lambda hit: (hit[0], -len(hit[1]))) if found else None


class Output:
    """The visible side of one request."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._text = ""

    def push(self, token: int) -> Piece | None:
        """Takes a generated token; returns what may be shown now, None when nothing may."""
        self._tokens.append(token)
        self._text += self._detokenizer.push(token)
        stop = first_stop(self._text, self._stops)
        if stop is not None:
            return self._take(self._text[: stop[0]], stop[1])
        if self._detokenizer.pending or held_back(self._text, self._stops):
            return None
        return self._take(self._text)

    def flush(self) -> Piece | None:
        """Whatever was held back, at the end; an open code point becomes U+FFFD."""
        self._text += self._detokenizer.flush()
        return self._take(self._text) if self._tokens else None

    def _take(self, text: str, stop: str | None = None) -> Piece:
        piece = Piece(tuple(self._tokens), text, stop)
        self._tokens.clear()
        self._text = ""
        return piece
