"""What may a model be called, and what is a file's model called?"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

# Together with an ending it is a file's name, of which the kernel takes 255 bytes.
MOST_BYTES = 128
RULE = f"a name has 1 to {MOST_BYTES} bytes of printable characters, no '/', and begins with neither '.', '-' nor space"


def is_name(name: str) -> bool:
    """True when a model may be called that: as the file it is packed into, in a line of a log, on a command line."""
    # What is no UTF-8 in a file's name is not printable either: Python has a surrogate for it.
    plain = name.isprintable() and "/" not in name and name == name.strip() and name[:1] not in (".", "-")
    return plain and 1 <= len(name.encode()) <= MOST_BYTES


def named(stem: str) -> str:
    """The name that a file's name without its ending gives: composed, as keyboards write it."""
    return unicodedata.normalize("NFC", stem)


def _checked(name: str) -> str:
    if not is_name(name):
        raise ValueError(RULE)
    return name


# A field of a pydantic model.
ModelName = Annotated[str, AfterValidator(_checked)]


def stem_of(path: Path) -> str:
    """The name of a file or directory without its ending, whatever case that is written in."""
    return named(path.name.rpartition(".")[0])
