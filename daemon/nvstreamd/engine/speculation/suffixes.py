"""What followed the last tokens, where they came before? An index over a text that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Tokens that must agree before anything is guessed.
GRAM = 3
# Agreement beyond this says nothing more.
LONGEST = 16
# No token: a guess does not run from one text into the next.
END = -1
TOKEN_BITS = 24


@dataclass(frozen=True, slots=True)
class Match:
    """The tokens that followed, and how many before them agree with the text at hand."""

    tokens: tuple[int, ...]
    agreeing: int


class Suffixes:
    """The latest place of every run of GRAM tokens. What has been added is found after `index` has got so far."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._places: dict[int, int] = {}
        self._indexed = GRAM

    def add(self, tokens: Sequence[int]) -> None:
        """Puts tokens behind those that are there."""
        self.tokens += tokens

    def index(self, most: int) -> None:
        """Looks at `most` more tokens; the last one is never looked at: nothing follows it yet."""
        end = min(self._indexed + most, len(self.tokens))
        for place in range(self._indexed, end):
            self._places[_key(self.tokens[place - GRAM : place])] = place
        self._indexed = max(self._indexed, end)

    def follow(self, recent: Sequence[int], most: int) -> Match | None:
        """Up to `most` tokens that followed the end of `recent`, None where it did not come before."""
        place = self._places.get(_key(recent[-GRAM:])) if len(recent) >= GRAM else None
        if place is None:
            return None
        found = self.tokens[place : place + most]
        if END in found:
            found = found[: found.index(END)]
        return Match(tuple(found), self._agreeing(recent, place)) if found else None

    def _agreeing(self, recent: Sequence[int], place: int) -> int:
        most = min(LONGEST, place, len(recent))
        for length in range(GRAM, most):
            if self.tokens[place - length - 1] != recent[-length - 1]:
                return length
        return most


def _key(tokens: Sequence[int]) -> int:
    """A whole number for GRAM tokens: cheaper to keep than a tuple."""
    key = 0
    for token in tokens:
        key = key << TOKEN_BITS | token & (1 << TOKEN_BITS) - 1
    return key
