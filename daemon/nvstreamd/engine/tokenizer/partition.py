"""Where in a raw text do special tokens stand? Cuts a text into plain stretches and token ids.

Reference of the behaviour: llama.cpp's tokenizer_st_partition: each special token in turn, the longest first,
over the whole text. That is not leftmost-longest matching, so the library's added tokens cannot replace it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# isspace() in the C locale, which is narrower than str.isspace().
_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True)
class SpecialToken:
    """A token that raw text may contain as such.

    Attributes:
        always: found even when the caller does not parse special tokens (user-defined tokens).
    """

    id: int
    text: str
    always: bool
    lstrip: bool
    rstrip: bool


def partition(text: str, specials: Sequence[SpecialToken], parse_special: bool) -> list[str | int]:
    """Plain stretches (str, never empty) and token ids (int), in the order of the text.

    Args:
        text: any text.
        specials: in the order of search: longest first.
        parse_special: find control tokens too, not only those that are always found.
    """
    fragments: list[str | int] = [text] if text else []
    for token in specials:
        if (parse_special or token.always) and token.text in text:
            fragments = _split_all(fragments, token)
    return fragments


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
