"""What is compiled for a card? A unit for what needs no type of weights, and one for each type that a model has.

The sources are kernels/gpu/ and the blocks' layouts of kernels/cpu/. They are given by name, as NVRTC wants them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.gpu_form import PIECE_BYTES
from nvstreamd.kernels.gpu_structs import header

SOURCES = Path(__file__).parent / "gpu"
BLOCKS = Path(__file__).parent / "cpu" / "blocks.h"
WORDS = "words.h"


@dataclass(frozen=True, slots=True)
class Unit:
    """A source file, and what is defined for it."""

    name: str
    source: str
    defines: tuple[tuple[str, str], ...] = ()


OF_ROWS = Unit("rows", "of_rows.cu")


def of_type(kind: GgmlType) -> Unit:
    """The unit of a type of weights."""
    return Unit(kind.name, "of_type.cu", (("TYPE", kind.name), ("PIECE_BYTES", str(PIECE_BYTES[kind]))))


class Compiler(Protocol):
    """Makes machine code of a unit."""

    def compile(self, unit: Unit) -> bytes:
        """The module's image. Takes seconds the first time. Raises KernelError."""


@cache
def sources() -> dict[str, str]:
    """The text of every file, by the name under which others include it; without the words of a device."""
    found = {path.name: path.read_text() for path in sorted(SOURCES.glob("*")) if path.suffix in (".h", ".cu")}
    return {name: text for name, text in found.items() if not name.startswith("words")} | {
        BLOCKS.name: BLOCKS.read_text(), "structs.h": header()}


def digest(unit: Unit, words: str, *others: str) -> str:
    """What a unit's machine code depends on: the sources, the words, and what else is given."""
    found = hashlib.sha256()
    for text in (*(f"{name}\n{text}" for name, text in sorted(sources().items())), words, repr(unit), *others):
        found.update(text.encode() + b"\0")
    return found.hexdigest()
