"""How is a number of bytes told, so that a person can type it back?"""

from __future__ import annotations


def mib(size: int) -> str:
    """A size as a person writes it, rounded up so that the figure works when it is typed back."""
    return f"{-(-size >> 20)}MiB"


def apart(one: int, other: int) -> tuple[str, str]:
    """Two sizes of which a message says that they differ: in bytes, where rounded they would read the same."""
    return (mib(one), mib(other)) if mib(one) != mib(other) else (f"{one} bytes", f"{other} bytes")
