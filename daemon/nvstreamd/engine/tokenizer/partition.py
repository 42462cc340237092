"""Where in a raw text do special tokens stand? Cuts a text into plain stretches and token ids.

Reference of the behaviour: llama.cpp's tokenizer_st_partition: each special token in turn, the longest first,
over the whole text. That is not leftmost-longest matching, so the library's added tokens cannot replace it.

Which of them a text may contain is another question, and there we are stricter: see `Specials`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# isspace() in the C locale, which is narrower than str.isspace().
_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True)
class SpecialToken:
    """A token that raw text may contain as such.

    Attributes:
        always: found even in a text that may not spell control tokens: the vocabulary calls it a word of its own
            (user-defined), like a tag or a run of blanks.
    """

    id: int
    text: str
    always: bool
    lstrip: bool
    rstrip: bool


# Names of speakers in marks, as in "<|user|>": where a conversation has marks at all, these are some.
_SPEAKER: Final = re.compile(r"\W+(system|developer|user|assistant|tool|function|observation|model)\W+")
# Up to here it is cheaper to look up every stretch of a text than to look for every token in it.
_SHORT: Final = 256
_REMEMBERED: Final = 8


class Specials:
    """The special tokens of a vocabulary, in the order of search: longest first."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        tokens = tuple(tokens)
        self._all = _Search(tokens)
        self._always = tuple(token for token in tokens if token.always)
        self._harmless = {"": _Search(self._always)}

    def partition(self, text: str, parse_special: bool, structure: str = "") -> list[str | int]:
        """Plain stretches (str, never empty) and token ids (int), in the order of the text.

        Args:
            text: any text.
            parse_special: find control tokens too, not only those that are always found.
            structure: texts of a chat template. What a token means in there it does not mean in a text that may not
                spell control tokens: there it is not found, even if it is one that always is.
        """
        return (self._all if parse_special else self._words(structure)).partition(text)

    def marks(self, structure: str) -> frozenset[int]:
        """The tokens that `structure` keeps from being found in a text."""
        return frozenset(token.id for token in self._always) - self._words(structure).ids

    def _words(self, structure: str) -> _Search:
        known = self._harmless.get(structure)
        if known is None:
            if len(self._harmless) > _REMEMBERED:
                self._harmless = {"": self._harmless[""]}
            known = self._harmless[structure] = _Search(tuple(
                token for token in self._always if token.text not in structure and not _SPEAKER.fullmatch(token.text)
            ))  # fmt: skip
        return known


class _Search:
    """Finds some special tokens in texts."""

    def __init__(self, tokens: tuple[SpecialToken, ...]) -> None:
        self._tokens = tokens
        self._by_text = {token.text for token in tokens}
        self.ids = frozenset(token.id for token in tokens)
        lengths: dict[str, set[int]] = {}
        for token in tokens:
            lengths.setdefault(token.text[:1], set()).add(len(token.text))
        self._lengths = {first: sorted(sizes) for first, sizes in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, lengths))}]") if lengths else None

    def partition(self, text: str) -> list[str | int]:
        """The tokens and what is between them."""
        fragments: list[str | int] = [text] if text else []
        for token in self._candidates(text):
            fragments = _split_all(fragments, token)
        return fragments

    def _candidates(self, text: str) -> Sequence[SpecialToken]:
        """Those that stand somewhere in the text, in the order of search."""
        if self._first is None or self._first.search(text) is None:
            return ()
        if len(text) > _SHORT or len(text) > len(self._tokens):
            return [token for token in self._tokens if token.text in text]
        found = {
            stretch
            for place in self._first.finditer(text)
            for size in self._lengths[place[0]]
            if (stretch := text[place.start() : place.start() + size]) in self._by_text
        }
        return [token for token in self._tokens if token.text in found] if found else ()


def _split_all(fragments: list[str | int], token: SpecialToken) -> list[str | int]:
    result: list[str | int] = []
    for fragment in fragments:
        if isinstance(fragment, str) and token.text in fragment:
            _split(fragment, token, result)
        else:
            result.append(fragment)
    return result


def _split(text: str, token: SpecialToken, result: list[str | int]) -> None:
    start = 0
    while (found := text.find(token.text, start)) >= 0:
        left = text[start:found]
        if token.lstrip:
            left = left.rstrip(_SPACES)
        if left:
            result.append(left)
        result.append(token.id)
        start = found + len(token.text)
        if token.rstrip:
            start = _skip_spaces(text, start)
    if start < len(text):
        result.append(text[start:])


def _skip_spaces(text: str, start: int) -> int:
    while start < len(text) and text[start] in _SPACES:
        start += 1
    return start
