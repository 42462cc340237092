"""Which tokens and which text may the client see now?

Held back: tokens whose last bytes are no whole code point yet, and text that may become a stop string. What is
released is always whole tokens, so that the tokens already sent describe a stream completely (see supervisor.stream).
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
        # Where in `_text` a token ends and no code point is open: [tokens, characters], oldest first.
        self._cuts: list[tuple[int, int]] = []

    def push(self, token: int) -> Piece | None:
        """Takes a generated token; returns what may be shown now, None when nothing may."""
        self._tokens.append(token)
        self._text += self._detokenizer.push(token)
        if not self._detokenizer.pending:
            self._cuts.append((len(self._tokens), len(self._text)))
        stop = first_stop(self._text, self._stops)
        if stop is not None:
            return self._take(len(self._tokens), self._text[: stop[0]], stop[1])
        safe = len(self._text) - held_back(self._text, self._stops)
        ready = [cut for cut in self._cuts if cut[1] <= safe]
        return self._take(ready[-1][0], self._text[: ready[-1][1]]) if ready else None

    def flush(self) -> Piece | None:
        """Whatever was held back, at the end; an open code point becomes U+FFFD."""
        self._text += self._detokenizer.flush()
        return self._take(len(self._tokens), self._text) if self._tokens else None

    def _take(self, count: int, text: str, stop: str | None = None) -> Piece:
        """Gives out the first `count` tokens, whose text is `text`; with a stop string nothing remains."""
        piece = Piece(tuple(self._tokens[:count]), text, stop)
        del self._tokens[:count]
        self._text = self._text[len(text) :] if self._tokens else ""
        self._cuts = [(tokens - count, end - len(text)) for tokens, end in self._cuts if tokens > count]
        return piece
