"""How are a file's hyperparameters read? Each with its type and its range, named where it is wrong.

Keys are those of the GGUF specification, `ARCH.` standing for general.architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

from nvstreamd.errors import BadModelFile

MOST_WIDTH = 1 << 20
MOST_CONTEXT = 1 << 24
MOST_LAYERS = 1 << 12
MOST_EXPERTS = 1 << 10
MOST_VOCABULARY = 1 << 22
# Below it a float32 reciprocal or quotient overflows: nothing sane is that small.
SMALLEST_REAL = 1e-20


class Keys:
    """Reads `ARCH.key` values, each with its type and range checked."""

    def __init__(self, path: str, metadata: Mapping[str, object]) -> None:
        self.path = path
        self.metadata = metadata
        self.architecture = metadata.get("general.architecture")

    def bad(self, key: str, problem: str, hint: str = "convert the model again") -> BadModelFile:
        """The error for a key that cannot be used."""
        return BadModelFile(f"{self.path}: {self.architecture}.{key} {problem}", hint, field=key)

    def has(self, key: str) -> bool:
        """True when the file gives the key."""
        return f"{self.architecture}.{key}" in self.metadata

    def get(self, key: str, default: object) -> object:
        """The value as the file has it."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def integer(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to `most`; per-layer arrays count when all entries are equal."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.bad(key, f"is {str(value)[:60]}, expected a whole number from 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST_REAL < value < 1e12:
            raise self.bad(key, f"is {str(value)[:60]}, expected a positive number")
        return float(value)
