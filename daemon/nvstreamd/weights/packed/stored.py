"""What may manifest.json say? Its form; whether what it says can be true is checked by `store`.

Version 3 has one list of segments, each with its key and the slices of tensors that it holds. Versions 1 and 2, which
had layers and head apart, are read as if they were that (`stored_before`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag

from nvstreamd.errors import BadModelFile
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.packed.files import MOST_PARTS
from nvstreamd.weights.packed.manifest import ALIGNMENT, Segment
from nvstreamd.weights.packed.superblock import SERIAL_BYTES, Identifier, Offset

FIRST_PART = 2
# Descriptors travel in one message: manifest and header take two of them.
MOST_DRIVES = MOST_PARTS - FIRST_PART
PROBE = 1 << 20
# pydantic names them in the place of an error, where no reader of a manifest would find them.
FILE, DRIVE = "<file>", "<drive>"
Size = Annotated[int, Field(ge=0, lt=1 << 62)]
Aligned = Annotated[int, Field(ge=0, lt=1 << 62, multiple_of=ALIGNMENT)]
Length = Annotated[int, Field(gt=0, lt=1 << 62, multiple_of=ALIGNMENT)]
Dimension = Annotated[int, Field(ge=1, lt=1 << 48)]
Name = Annotated[str, Field(min_length=1, max_length=1 << 16)]
Shape = Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=4)]
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
KeyName = Annotated[str, Field(pattern=r"^(constants|(layer|head|expert\.(0|[1-9][0-9]{0,6}))\.(0|[1-9][0-9]{0,6}))$")]
VERSION: Literal[3] = 3
# As the manifest says it, for those who meet it with a program that is too old, or is none of ours.
READERS = "nvstreamd 0.2.0 and later"


class Stored(BaseModel):
    """Whatever stands in a manifest: no field too many, and none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredExtent(Stored):
    """`length` bytes at byte `offset` of part `file`, that go to byte `target` of the slot."""

    file: Size
    offset: Aligned
    length: Length
    target: Aligned


class StoredSlice(Stored):
    """What steps call `name`: of tensor `tensor`, from `first` of its outermost dimension on, shape `shape`.

    `offset` is where it lies, in bytes from its segment's beginning. `shape` is (rows, columns) or (columns,).
    """

    name: Name
    tensor: Name
    first: Size = 0
    type: Name
    shape: Shape
    offset: Size


class StoredSegment(Stored):
    """A piece's weights. `nbytes` is what they take in a slot; `checksum` is their XXH3-64 in hexadecimal."""

    key: KeyName
    extents: Annotated[tuple[StoredExtent, ...], FailFast()]
    tensors: Annotated[tuple[StoredSlice, ...], FailFast()]
    nbytes: Length
    checksum: Checksum


class StoredEmbedding(Stored):
    """The token embedding, in one piece in part 0; `checksum` as of a segment."""

    type: Name
    columns: Dimension
    rows: Dimension
    offset: Aligned
    checksum: Checksum


class StoredProbe(Stored):
    """`length` bytes from byte `offset` of the part on, and their BLAKE2b of 16 bytes in hexadecimal."""

    offset: Aligned
    length: Annotated[int, Field(gt=0, le=PROBE, multiple_of=ALIGNMENT)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class StoredDrive(Stored):
    """A part that is a stretch of a drive. `volume` is its superblock's UUID, `model` the import in its directory."""

    serial: Annotated[str, Field(min_length=1, max_length=SERIAL_BYTES)]
    nsid: Annotated[int, Field(ge=1, lt=0xFFFFFFFF)]
    volume: Identifier
    model: Identifier
    offset: Offset
    size: Aligned
    probes: Annotated[tuple[StoredProbe, ...], Field(max_length=2)]


class StoredSource(Stored):
    """A GGUF that the model was made of, as it was then. `mtime_ns` counts nanoseconds since 1970."""

    path: Name
    size: Size
    mtime_ns: Annotated[int, Field(ge=-(1 << 62), lt=1 << 62)]
    inode: Annotated[int, Field(ge=0, lt=1 << 64)]
    sample: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""


def _kind_of_part(part: object) -> str:
    return DRIVE if isinstance(part, dict | StoredDrive) else FILE


# What a path may be is for `store` to say.
StoredPart = Annotated[Annotated[Name, Tag(FILE)] | Annotated[StoredDrive, Tag(DRIVE)], Discriminator(_kind_of_part)]
StoredParts = Annotated[tuple[StoredPart, ...], Field(min_length=1, max_length=MOST_DRIVES)]
PartBytes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=MOST_DRIVES)]
StoredSources = Annotated[tuple[StoredSource, ...], Field(max_length=MOST_PARTS)]


class StoredModel(Stored):
    """manifest.json. `parts` are absolute paths or stretches of drives, `part_bytes` their sizes.

    `segments` are the constants, then what a pass needs, in its order. `readers` says which programs read the manifest.
    """

    version: Literal[3]
    readers: Annotated[str, Field(max_length=200)]
    name: Name
    parts: StoredParts
    part_bytes: PartBytes
    shapes: dict[Name, Shape]
    types: dict[Name, Name]
    bytes_by_type: dict[Name, Size]
    segments: Annotated[tuple[StoredSegment, ...], FailFast(), Field(min_length=3)]
    embedding: StoredEmbedding
    sources: StoredSources = ()


def probe_stretches(size: int) -> tuple[tuple[int, int], ...]:
    """(offset, length) of what is probed of a part of `size` bytes: its first and its last MiB, or all of it."""
    length = min(PROBE, size)
    return tuple((offset, length) for offset in sorted({0, size - length}) if length)


def damaged(path: str, problem: str, field: str = "") -> BadModelFile:
    """The error for a store that cannot be what the importer wrote."""
    problem = problem[:400].encode(errors="backslashreplace").decode()
    return BadModelFile(f"{path}: {problem}", "the store is damaged: import the model again", field=field)


def stored_segment(segment: Segment, checksum: int) -> StoredSegment:
    """A segment as manifest.json has it."""
    return StoredSegment(
        key=segment.key.name,
        extents=tuple(StoredExtent(file=e.file, offset=e.offset, length=e.length, target=e.target)
                      for e in segment.extents),
        tensors=tuple(StoredSlice(name=t.name, tensor=t.slice.tensor, first=t.slice.first, type=t.type.name,
                                  shape=t.shape, offset=t.offset) for t in segment.tensors),
        nbytes=segment.nbytes,
        checksum=f"{checksum:016x}",
    )


def key_of(name: str) -> Key:
    """The key of a name that `KeyName` lets through."""
    kind, *numbers = name.split(".")
    return Key(Kind(kind), *map(int, numbers))
