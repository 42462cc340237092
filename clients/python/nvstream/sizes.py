"""How many bytes is "60MiB", and how is a number of bytes, seconds or a rate shown to a person?"""

from __future__ import annotations

import re
from fractions import Fraction

Size = int | str

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_EXPONENT = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: Size) -> int:
    """Bytes of "60MiB", "1.5GiB", "200MB", "1000000" or a plain int. Raises ValueError for anything else.

    KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000; "60M" is refused as ambiguous.
    """
    if isinstance(text, int):
        return _whole(Fraction(text), str(text))
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size; write 60MiB, 1.5GiB or 1000000")
    number, letter, binary, byte = found.groups()
    if (letter and not byte) or (binary and not letter):
        raise ValueError(f"{text!r} has no clear unit; write MiB (1024**2 bytes) or MB (1000**2 bytes)")
    return _whole(Fraction(number) * (1024 if binary else 1000) ** _EXPONENT[letter.lower()], text)


def format_bytes(count: float) -> str:
    """A size in the largest binary unit that leaves a figure of one or more: "60.0 MiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """A duration as people read it: "850 us", "12.5 ms", "3.21 s", "5 min 03 s", "2 h 05 min"."""
    if 0 < seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if 0 < seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _whole(size: Fraction, text: str) -> int:
    if size < 0 or size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)
