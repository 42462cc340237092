"""Where are long numbers cut into threes from the right? Grouping that some tokenizers make before all else.

Reference of the behaviour: llama.cpp, src/unicode.cpp and the expressions it runs for `afmoe`, `superbpe` and
`tiny_aya`. Here it is arithmetic over runs of digits: look-aheads take quadratic time on a long number.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from nvstreamd.engine.tokenizer.pre_tokenizers import Digits

_GROUP: Final = 3
# The library's \p{N}, not Python's: the two know different versions of Unicode.
_NUMBERS: Final = Split(Regex(r"\p{N}+"), "isolated")
_NUMBER_INITIAL: Final = Split(Regex(r"\p{N}"), "removed")
_ASCII_RUN = re.compile(r"[0-9]+")


def _groups(start: int, end: int) -> range:
    """First positions of the groups; a shorter one at the left takes what three does not divide."""
    return range(start + (end - start) % _GROUP, end, _GROUP)


def ascii_cuts(text: str) -> list[int]:
    """Positions before every group of three ASCII digits, counted from the right of each run."""
    return [cut for run in _ASCII_RUN.finditer(text) for cut in _groups(*run.span())]


def _is_number(char: str) -> bool:
    return not _NUMBER_INITIAL.pre_tokenize_str(char)


def number_cuts(text: str) -> list[int]:
    """After every group of digits of any script; the text before a number stays with its first group."""
    runs = [span for piece, span in _NUMBERS.pre_tokenize_str(text) if _is_number(piece[0])]
    return [cut for start, end in runs for cut in (*(c for c in _groups(start, end) if c > start), end)]


_CUTS: Final = {
    Digits.NUMBERS: number_cuts,
    Digits.ASCII: ascii_cuts,
}


def cut(text: str, digits: Digits) -> list[str]:
    """The text in pieces, long numbers cut; the whole text as one piece where nothing is to be cut.

    Args:
        text: any text.
        digits: which digits are grouped.
    """
    if digits is Digits.NONE:
        return [text]
    edges = sorted({0, len(text), *_CUTS[digits](text)})
    return [text[start:end] for start, end in pairwise(edges)]
