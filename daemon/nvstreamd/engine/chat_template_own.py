"""Which characters of a rendered text did the template itself write? Strings that know it, whatever is done to them.

A text that came from a caller is a plain `str`. A constant of the template is an `OwnText`, which remembers for each
character whether it is the template's. Operations that are followed here keep that knowledge; any other gives a plain
`str`, which nobody trusts. So what is forgotten can cost a template its own control tokens, and never lets a message
spell one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, SupportsIndex

# The marks, one byte a character: a caller's; the template's, going on; the template's, first of a constant.
_OTHERS, _GOES_ON, _BEGINS = b"\0", b"\1", b"\2"
_RUN: Final = re.compile(rb"\x00+|[\x01\x02]\x01*")
# A control token lies within one constant of the template: else a message that chooses among constants, or leaves
# nothing between two, could put one together. Words and blanks may join constants: "<|" + role + "|>" + "\n".
_JOINS: Final = re.compile(r"[A-Za-z0-9_.-]{2,64}|\s+")


class OwnText(str):
    """A string of which some characters are the template's own. The constructor alone grants nothing: see `own`."""

    __slots__ = ("_marks",)
    _marks: bytes

    def __new__(cls, text: str = "", marks: bytes | None = None) -> OwnText:
        made = super().__new__(cls, text)
        made._marks = bytes(len(made)) if marks is None else marks
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: object) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return OwnText(str.__add__(self, other), self._marks + marks_of(other))

    def __radd__(self, other: object) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return OwnText(str.__add__(other, self), marks_of(other) + self._marks)

    def __mul__(self, times: SupportsIndex) -> str:
        return OwnText(str.__mul__(self, times), self._marks * times)

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = str.__getitem__(self, key)
        if isinstance(key, slice) and key.step not in (None, 1):
            return text
        return _piece(text, self._marks[key] if isinstance(key, slice) else _at(self._marks, key))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def strip(self, chars: str | None = None) -> str:
        return self._from(len(self) - len(str.lstrip(self, chars)), str.strip(self, chars))

    def lstrip(self, chars: str | None = None) -> str:
        return self._from(len(self) - len(str.lstrip(self, chars)), str.lstrip(self, chars))

    def rstrip(self, chars: str | None = None) -> str:
        return self._from(0, str.rstrip(self, chars))

    def removeprefix(self, prefix: str) -> str:
        text = str.removeprefix(self, prefix)
        return self._from(len(self) - len(text), text)

    def removesuffix(self, suffix: str) -> str:
        return self._from(0, str.removesuffix(self, suffix))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        start, lines = 0, []
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            lines.append(self._from(start, line))
            start += len(whole)
        return lines

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._three(str.rpartition(self, sep))

    def join(self, parts: Iterable[str]) -> str:
        return join(self, parts)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        """The new text counts as the template's only where all of the old was, and it is itself."""
        if not old:
            return str.replace(self, old, new, count)
        pieces, start, result = str.split(self, old, count), 0, []
        for piece in pieces:
            if start:
                trusted = 0 not in self._marks[start - len(old) : start]
                result.append(new if trusted else _plain(new))
            result.append(self._from(start, piece))
            start += len(piece) + len(old)
        return concat(result)

    def upper(self) -> str:
        return self._one_to_one(str.upper(self))

    def lower(self) -> str:
        return self._one_to_one(str.lower(self))

    def title(self) -> str:
        return self._one_to_one(str.title(self))

    def capitalize(self) -> str:
        return self._one_to_one(str.capitalize(self))

    def _from(self, start: int, text: str) -> str:
        """`text`, which stands in this one from `start` on."""
        return _piece(text, self._marks[start : start + len(text)])

    def _found(self, pieces: list[str], sep: str | None) -> list[str]:
        start, result = 0, []
        for piece in pieces:
            if sep is None:
                start = self.find(piece, start)
            result.append(self._from(start, piece))
            start += len(piece) + len(sep or "")
        return result

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second, third = parts
        return (self._from(0, first), self._from(len(first), second), self._from(len(first) + len(second), third))

    def _one_to_one(self, text: str) -> str:
        """`text`, into which each character of this one was mapped. Mapped to several it grows, and is no one's."""
        return OwnText(text, self._marks) if len(text) == len(self) else text


def own(text: str) -> OwnText:
    """A constant of the template."""
    return OwnText(text, (_BEGINS + _GOES_ON * (len(text) - 1)) if text else b"")


def marks_of(text: str) -> bytes:
    """One byte a character; of a plain string all are a caller's."""
    return text._marks if isinstance(text, OwnText) else bytes(len(text))


def concat(parts: Iterable[str]) -> str:
    """The parts one behind the other: what jinja2 joins the output of macros and blocks with."""
    return join("", parts)


def join(separator: str, parts: Iterable[str]) -> str:
    """`separator.join(parts)`, each character as it was."""
    listed = list(parts)
    text = _plain(separator).join(listed)
    return OwnText(text, marks_of(separator).join(map(marks_of, listed)))


def stretches(parts: Iterable[str]) -> list[str]:
    """A rendered text by who wrote it: a caller's stretch, one of the template's, and so on in turn.

    Two stretches of the template have an empty one between them where no control token may reach across.
    """
    found: list[list[str]] = [[]]
    joins = False
    for text, is_own in _runs(parts):
        joining = is_own and _JOINS.fullmatch(text) is not None
        if is_own == (len(found) % 2 == 0) and (not is_own or joins or joining):
            found[-1].append(text)
        elif is_own == (len(found) % 2 == 0):
            found += [[], [text]]
        else:
            found.append([text])
        joins = joining
    return ["".join(texts) for texts in found]


def _runs(parts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for part in parts:
        if not isinstance(part, OwnText):
            yield part, False
            continue
        text = _plain(part)
        for run in _RUN.finditer(part._marks):
            yield text[run.start() : run.end()], run[0][:1] != _OTHERS


# Of any string the exact `str`, which carries no marks.
_plain: Final = str.__str__


def _piece(text: str, marks: bytes) -> str:
    return OwnText(text, _BEGINS + marks[1:] if marks[:1] == _GOES_ON else marks)


def _at(marks: bytes, index: SupportsIndex) -> bytes:
    return bytes((marks[index],))
