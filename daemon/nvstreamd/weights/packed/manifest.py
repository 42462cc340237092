"""Which bytes of which file does each piece of a model's weights need, and where do they lie in a slot?

A segment is a piece's bytes: what is read and multiplied in one go. The architecture says what the pieces are; here is
arithmetic on the tensor table alone, and no weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from nvstreamd.ggml import GgmlType
from nvstreamd.pieces import Key, Kind, Piece, Slice
from nvstreamd.weights.packed.gguf import Gguf, Tensor

# O_DIRECT and NVMe transfers start and end on logical blocks; 4096 suits every drive.
ALIGNMENT = 4096
TABLE = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of file number `file` go to byte `target` of the slot; all aligned."""

    file: int
    offset: int
    length: int
    target: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A slice of a tensor, `offset` bytes into its segment. `shape` is (rows, columns) or (columns,)."""

    slice: Slice
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def name(self) -> str:
        """The name that steps call it by."""
        return self.slice.name

    @property
    def nbytes(self) -> int:
        """Bytes of all its blocks."""
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece's weights. `nbytes` is what they take in a slot; `checksum` is XXH3-64 of them when packed."""

    key: Key
    extents: tuple[Extent, ...]
    tensors: tuple[Placed, ...]
    nbytes: int
    checksum: int | None = None

    @property
    def name(self) -> str:
        """Its key's name."""
        return self.key.name

    @property
    def read_bytes(self) -> int:
        """Bytes that the drive moves for it."""
        return sum(extent.length for extent in self.extents)

    @property
    def by_name(self) -> dict[str, Placed]:
        """Its tensors by the names that steps call them by."""
        return {placed.name: placed for placed in self.tensors}


@dataclass(frozen=True, slots=True)
class EmbeddingPiece:
    """`rows` consecutive rows of the token embedding from `first_row` on."""

    first_row: int
    rows: int
    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class Embedding:
    """The table that rows are fetched from one by one, never as a whole."""

    type: GgmlType
    columns: int
    rows: int
    pieces: tuple[EmbeddingPiece, ...]
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """The hash of `length` bytes of a drive from byte `offset` on: BLAKE2b of 16 bytes, in hexadecimal."""

    offset: int
    length: int
    digest: str


@dataclass(frozen=True, slots=True)
class DriveHome:
    """The stretch of a drive that a data file of a packed model is: `size` bytes from byte `offset` on.

    `probes` are its first and its last MiB, as they were read past the page cache once it was written: a path to the
    drive that gives other bytes is not to be used. `volume` and `model` are what the drive itself says it carries.
    """

    serial: str
    nsid: int
    offset: int
    size: int
    probes: tuple[Probe, ...]
    volume: str
    model: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A GGUF that a packed model was made of, as it was then. `mtime_ns` is in nanoseconds since 1970."""

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The bytes of a model. `segments` are those that a pass needs, in its order.

    `paths` are its data files in the order `Extent.file` counts. `homes` has an item for each of them: the stretch of a
    drive that it is, None for a file. Extents of one on a drive count from the drive's beginning. `readers` says which
    versions of this program read what is `packed`. Both `homes` and `sources` are empty unless it is `packed`.
    """

    paths: tuple[str, ...]
    packed: bool
    metadata: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    bytes_by_type: dict[str, int]
    constants: Segment
    segments: tuple[Segment, ...]
    embedding: Embedding
    homes: tuple[DriveHome | None, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    readers: str = ""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces that the segments hold, constants first."""
        return tuple(Piece(segment.key, tuple(placed.slice for placed in segment.tensors))
                     for segment in (self.constants, *self.segments))

    @property
    def sizes(self) -> dict[Key, int]:
        """Bytes in a slot of what a pass needs, in its order."""
        return {segment.key: segment.nbytes for segment in self.segments}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self.bytes_by_type.values())


def align_down(value: int) -> int:
    """The last multiple of ALIGNMENT up to `value`."""
    return value // ALIGNMENT * ALIGNMENT


def align_up(value: int) -> int:
    """The first multiple of ALIGNMENT from `value` on."""
    return -(-value // ALIGNMENT) * ALIGNMENT


def segment_in_place(key: Key, found: Iterable[tuple[Slice, Tensor]]) -> Segment:
    """The segment that reads slices where they lie, each given with its tensor: neighbours share an extent."""
    extents: list[Extent] = []
    placed: list[Placed] = []
    target = 0
    parts = [(each, sliced(tensor, each)) for each, tensor in found]
    for each, part in sorted(parts, key=lambda pair: (pair[1].file, pair[1].offset)):
        begin, end = align_down(part.offset), align_up(part.offset + part.nbytes)
        last = extents[-1] if extents else None
        if last is not None and last.file == part.file and begin <= last.offset + last.length:
            extents[-1] = last = replace(last, length=max(last.length, end - last.offset))
        else:
            last = Extent(part.file, begin, end - begin, target)
            extents.append(last)
        target = last.target + last.length
        placed.append(Placed(each, part.type, part.shape, last.target + part.offset - last.offset))
    return Segment(key, tuple(extents), tuple(placed), target)


def sliced(tensor: Tensor, part: Slice) -> Tensor:
    """A slice as a tensor of its own, under the name that steps call it by."""
    each = tensor.nbytes // tensor.shape[0]
    return replace(tensor, name=part.name, shape=shape_of(tensor.shape, part), offset=tensor.offset + part.first * each,
                   nbytes=part.count * each)


def shape_of(shape: tuple[int, ...], part: Slice) -> tuple[int, ...]:
    """The shape of a slice of a tensor of that shape."""
    return shape[1:] if len(shape) > 2 and part.count == 1 else (part.count, *shape[1:])


def in_place(gguf: Gguf, pieces: Sequence[Piece]) -> Manifest:
    """The manifest that streams a GGUF from where it lies, in the architecture's pieces."""
    segments = tuple(segment_in_place(piece.key, [(each, gguf.tensors[each.tensor]) for each in piece.slices])
                     for piece in pieces)
    assert segments[0].key.kind is Kind.CONSTANTS, "constants come first"
    table = gguf.tensors[TABLE]
    shapes, types = shapes_and_types(gguf)
    return Manifest(
        paths=gguf.paths,
        packed=False,
        metadata=gguf.metadata,
        shapes=shapes,
        types=types,
        bytes_by_type=bytes_by_type(gguf.tensors.values()),
        constants=segments[0],
        segments=segments[1:],
        embedding=Embedding(
            table.type, table.shape[1], table.shape[0], (EmbeddingPiece(0, table.shape[0], table.file, table.offset),)
        ),
    )


def shapes_and_types(gguf: Gguf) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of each tensor, and the name of its type."""
    return ({name: tensor.shape for name, tensor in gguf.tensors.items()},
            {name: tensor.type.name for name, tensor in gguf.tensors.items()})


def bytes_by_type(tensors: Iterable[Tensor]) -> dict[str, int]:
    """{type name: bytes of all tensors of that type}."""
    total: Counter[str] = Counter()
    for tensor in tensors:
        total[tensor.type.name] += tensor.nbytes
    return dict(total)
