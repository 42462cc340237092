"""Which tensors does an architecture take from a file? Each is checked where a block asks for it.

A tensor that nobody asked for is an error: ignored, the answer would be another model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from nvstreamd.errors import BadModelFile
from nvstreamd.program import Matrix, Norm

# What a device reads as a vector; no converter writes others.
VECTOR_TYPES = ("F32", "F16", "BF16")


class Bias(Enum):
    """The biases that a block expects beside a matrix."""

    NONE = auto()
    OPTIONAL = auto()
    REQUIRED = auto()


class Tensors:
    """The tensor table of a file, of which names begin with `prefix`; `asked` grows with each request."""

    def __init__(self, path: str, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str], prefix: str = "",
                 asked: set[str] | None = None) -> None:
        self.path = path
        self.prefix = prefix
        self.shapes = shapes
        self._types = types
        self._asked: set[str] = set() if asked is None else asked

    def layer(self, number: int) -> Tensors:
        """The tensors of a layer, whose names are those without `blk.N.`."""
        return Tensors(self.path, self.shapes, self._types, f"blk.{number}.", self._asked)

    def has(self, name: str) -> bool:
        """True when the file has the tensor."""
        return self.prefix + name in self.shapes

    def rows(self, name: str) -> int:
        """Rows of a matrix, 0 where there is none."""
        return self.shapes.get(self.prefix + name, (0,))[0]

    def vector(self, name: str, columns: int) -> str:
        """Asks for a vector [columns]; returns its name. Raises BadModelFile."""
        full = self._ask(name, (columns,))
        kind = self._types[full]
        if kind not in VECTOR_TYPES:
            raise BadModelFile(f"{self.path}: tensor {full} is {kind}, expected {', '.join(VECTOR_TYPES)}",
                               "convert the model again", field=full)
        return name

    def norm(self, name: str, columns: int, epsilon: float) -> Norm:
        """Asks for the vector `name`.weight of an RMSNorm. Raises BadModelFile."""
        return Norm(self.vector(f"{name}.weight", columns), epsilon)

    def matrix(self, name: str, rows: int, columns: int, bias: Bias = Bias.NONE) -> Matrix:
        """Asks for `name`.weight [rows, columns] and, as `bias` says, `name`.bias [rows]. Raises BadModelFile."""
        self._ask(f"{name}.weight", (rows, columns))
        beside = f"{name}.bias"
        wanted = bias is Bias.REQUIRED or (bias is Bias.OPTIONAL and self.has(beside))
        return Matrix(f"{name}.weight", rows, columns, self.vector(beside, rows) if wanted else None)

    def experts(self, name: str, count: int, rows: int, columns: int) -> Matrix:
        """Asks for `name`.weight [count, rows, columns]; the matrix of any of them. Raises BadModelFile."""
        self._ask(f"{name}.weight", (count, rows, columns))
        return Matrix(f"{name}.weight", rows, columns)

    def _ask(self, name: str, shape: tuple[int, ...]) -> str:
        full = self.prefix + name
        found = self.shapes.get(full)
        if found != shape:
            problem = "is missing" if found is None else f"has shape {found}"
            raise BadModelFile(f"{self.path}: tensor {full} {problem}, expected {shape}", "convert the model again",
                               field=full)
        self._asked.add(full)
        return full

    def check_all_asked(self, architecture: str) -> None:
        """Raises BadModelFile when the file has a tensor that nobody asked for."""
        unknown = next(iter(sorted(self.shapes.keys() - self._asked)), None)
        if unknown is not None:
            raise BadModelFile(f"{self.path}: tensor {unknown[:200]} is unknown to family {architecture}",
                               "this kind of model is not supported", field=unknown[:200])
