"""How many guesses does a pass verify? So many that it yields the most tokens a second. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Guesses of a pass at most, beside those that are surely right: each takes a row of scores.
MOST_GUESSES = 64


@dataclass(frozen=True, slots=True)
class Guess:
    """`count` tokens, each of which is right with that probability if the one before it was."""

    count: int
    probability: float


def widths(guesses: Sequence[Guess], others: int, seconds: Callable[[int], float]) -> list[int]:
    """How many of each guess's tokens to verify.

    `others` are requests of the pass that get on by one step whatever is guessed: they wait longer for wider passes.
    `seconds` says how long a pass takes with so many tokens guessed in all.
    """
    worth = sorted(((guess.probability ** (place + 1), -place, number) for number, guess in enumerate(guesses)
                    for place in range(guess.count)), reverse=True)[:MOST_GUESSES]
    gained = float(len(guesses) + others)
    best, taken = gained / seconds(0), 0
    for number, (more, _, _) in enumerate(worth, start=1):
        gained += more
        rate = gained / seconds(number)
        if rate > best:
            best, taken = rate, number
    found = [0] * len(guesses)
    for _, _, number in worth[:taken]:
        found[number] += 1
    return found
