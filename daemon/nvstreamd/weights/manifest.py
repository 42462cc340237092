"""Which bytes of which file does each step of a pass need, and where do they lie in a slot?

A segment is what is read and multiplied in one go: a layer, or some rows of the output head. Everything
here is arithmetic on the tensor table; no weight is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nvstreamd.errors import BadModelFile
from nvstreamd.ggml import GgmlType
from nvstreamd.weights.gguf import Gguf, Tensor, bad, shown

# O_DIRECT and NVMe transfers start and end on logical blocks; 4096 suits every drive.
ALIGNMENT = 4096
SMALLEST_HEAD_PIECE = 1 << 20
MOST_LAYERS = 4096
MOST_ROWS = 1 << 22
LAYER_TENSOR = re.compile(r"blk\.(?P<layer>[0-9]{1,4})\.(?P<name>.+)", re.ASCII)
CONSTANTS = ("output_norm.weight", "rope_freqs.weight")


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of file number `file` go to byte `target` of the slot; all aligned."""

    file: int
    offset: int
    length: int
    target: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its segment. `shape` is (rows, columns) or (columns,)."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its blocks."""
        rows = 1
        for extent in self.shape[:-1]:
            rows *= extent
        return rows * self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class Segment:
    """One step's weights. `nbytes` is what it takes in a slot; `checksum` is XXH3-64 of them when packed."""

    name: str
    extents: tuple[Extent, ...]
    tensors: tuple[Place, ...]
    nbytes: int
    first_row: int = 0
    checksum: int | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes that the drive moves for it."""
        return sum(extent.length for extent in self.extents)


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
    """What `length` bytes of a drive from byte `offset` on hash to: BLAKE2b of 16 bytes, in hexadecimal."""

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
    """A model as the streamer sees it. `paths` are its data files in the order `Extent.file` counts.

    `homes` has an item for each of them: the stretch of a drive that it is, None for a file. Extents of one on a drive
    count from the drive's beginning. Both `homes` and `sources` are empty unless it is `packed`.
    """

    paths: tuple[str, ...]
    packed: bool
    metadata: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    bytes_by_type: dict[str, int]
    constants: Segment
    layers: tuple[Segment, ...]
    head: tuple[Segment, ...]
    embedding: Embedding
    homes: tuple[DriveHome | None, ...] = ()
    sources: tuple[SourceFile, ...] = ()

    @property
    def passes_over(self) -> tuple[Segment, ...]:
        """The segments of a pass, in the order it needs them."""
        return self.layers + self.head

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self.bytes_by_type.values())

    @property
    def bytes_per_pass(self) -> int:
        """Weight bytes that a pass multiplies, whoever waits for it."""
        return sum(place.nbytes for segment in self.passes_over for place in segment.tensors)


def align_down(value: int) -> int:
    """The last multiple of ALIGNMENT up to `value`."""
    return value // ALIGNMENT * ALIGNMENT


def align_up(value: int) -> int:
    """The first multiple of ALIGNMENT from `value` on."""
    return -(-value // ALIGNMENT) * ALIGNMENT


def segment_in_place(name: str, tensors: Iterable[Tensor], first_row: int = 0) -> Segment:
    """The segment that reads `tensors` where they lie: neighbours share an extent."""
    extents: list[Extent] = []
    places: list[Place] = []
    target = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.file, tensor.offset)):
        begin, end = align_down(tensor.offset), align_up(tensor.offset + tensor.nbytes)
        last = extents[-1] if extents else None
        if last is not None and last.file == tensor.file and begin <= last.offset + last.length:
            extents[-1] = last = replace(last, length=max(last.length, end - last.offset))
        else:
            last = Extent(tensor.file, begin, end - begin, target)
            extents.append(last)
        target = last.target + last.length
        places.append(Place(tensor.name, tensor.type, tensor.shape, last.target + tensor.offset - last.offset))
    return Segment(name, tuple(extents), tuple(places), target, first_row)


def rows_of(tensor: Tensor, first: int, count: int) -> Tensor:
    """`count` rows of a matrix from row `first` on, as a tensor of its own."""
    row_bytes = tensor.type.row_bytes(tensor.shape[-1])
    shape = (count, tensor.shape[-1])
    return replace(tensor, shape=shape, offset=tensor.offset + first * row_bytes, nbytes=count * row_bytes)


def head_pieces(head: Tensor, largest: int) -> list[tuple[int, Tensor]]:
    """Cuts the output head into (first row, rows) pieces of at most about `largest` bytes.

    Rows come in multiples of 32, so that a piece's arithmetic has the same shape as its neighbours'.
    """
    row_bytes = head.type.row_bytes(head.shape[-1])
    rows = max(32, max(largest, SMALLEST_HEAD_PIECE) // row_bytes // 32 * 32)
    return [
        (first, rows_of(head, first, min(rows, head.shape[0] - first))) for first in range(0, head.shape[0], rows)
    ]


def layer_count(gguf: Gguf) -> int:
    """`ARCH.block_count`. Raises BadModelFile when it is missing or absurd."""
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise bad(gguf.paths[0], "general.architecture", f"is {shown(architecture)}", "convert the model again")
    key = f"{architecture[:60]}.block_count"
    layers = gguf.metadata.get(f"{architecture}.block_count")
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise bad(gguf.paths[0], key, f"is {shown(layers)}, expected 1 to {MOST_LAYERS}", "convert the model again")
    return layers


def require(gguf: Gguf, name: str) -> Tensor:
    """The tensor of that name. Raises BadModelFile when the file has none."""
    tensor = gguf.tensors.get(name)
    if tensor is None:
        raise BadModelFile(f"{gguf.paths[0]}: tensor {name} is missing", "the conversion was incomplete", field=name)
    return tensor


def in_place(gguf: Gguf) -> Manifest:
    """The manifest that streams a GGUF from where it lies. Raises BadModelFile."""
    by_layer = _by_layer(gguf, layer_count(gguf))
    layers = tuple(segment_in_place(f"layer.{number}", tensors) for number, tensors in enumerate(by_layer))
    table = require(gguf, "token_embd.weight")
    head = gguf.tensors.get("output.weight", table)
    for matrix in (table, head):
        if len(matrix.shape) != 2 or matrix.shape[0] > MOST_ROWS:
            raise bad(gguf.paths[0], f"tensor {matrix.name}", f"has shape {matrix.shape}",
                      f"a matrix of at most {MOST_ROWS} rows is expected")
    largest = max(layer.nbytes for layer in layers)
    pieces = head_pieces(head, largest)
    return Manifest(
        paths=gguf.paths,
        packed=False,
        metadata=gguf.metadata,
        shapes={tensor.name: tensor.shape for tensor in gguf.tensors.values()},
        types={tensor.name: tensor.type.name for tensor in gguf.tensors.values()},
        bytes_by_type=bytes_by_type(gguf.tensors.values()),
        constants=segment_in_place("constants", [gguf.tensors[n] for n in CONSTANTS if n in gguf.tensors]),
        layers=layers,
        head=tuple(segment_in_place(f"head.{i}", [rows], first) for i, (first, rows) in enumerate(pieces)),
        embedding=Embedding(
            table.type, table.shape[1], table.shape[0], (EmbeddingPiece(0, table.shape[0], table.file, table.offset),)
        ),
    )


def _by_layer(gguf: Gguf, count: int) -> list[list[Tensor]]:
    """The tensors of each layer, their names without `blk.N.`. Raises BadModelFile when a layer has none."""
    layers: list[list[Tensor]] = [[] for _ in range(count)]
    for name, tensor in gguf.tensors.items():
        match = LAYER_TENSOR.match(name)
        if match is not None and int(match["layer"]) < count:
            layers[int(match["layer"])].append(replace(tensor, name=match["name"]))
    for index, found in enumerate(layers):
        if not found:
            raise bad(gguf.paths[0], f"blk.{index}", f"is missing: no tensor of layer {index}",
                      "the conversion was incomplete")
    return layers


def bytes_by_type(tensors: Iterable[Tensor]) -> dict[str, int]:
    """{type name: bytes of all tensors of that type}."""
    total: Counter[str] = Counter()
    for tensor in tensors:
        total[tensor.type.name] += tensor.nbytes
    return dict(total)
