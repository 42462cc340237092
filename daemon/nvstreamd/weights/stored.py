"""What may manifest.json say? Its form; whether what it says can be true is checked by `weights.store`."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, ValidationError, model_validator

from nvstreamd.errors import BadModelFile
from nvstreamd.weights.files import MOST_PARTS
from nvstreamd.weights.manifest import ALIGNMENT, Segment
from nvstreamd.weights.superblock import SERIAL_BYTES, Identifier, Offset

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


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredExtent(_Stored):
    """See manifest.Extent."""

    file: Size
    offset: Aligned
    length: Length
    target: Aligned


class StoredTensor(_Stored):
    """See manifest.Place."""

    name: Name
    type: Name
    shape: Shape
    offset: Size


class StoredSegment(_Stored):
    """See manifest.Segment; `checksum` is XXH3-64 in hexadecimal."""

    name: Name
    extents: Annotated[tuple[StoredExtent, ...], FailFast()]
    tensors: Annotated[tuple[StoredTensor, ...], FailFast()]
    nbytes: Length
    first_row: Size = 0
    checksum: Checksum


class StoredEmbedding(_Stored):
    """The token embedding, in one piece in part 0; `checksum` as of a segment."""

    type: Name
    columns: Dimension
    rows: Dimension
    offset: Aligned
    checksum: Checksum


class StoredProbe(_Stored):
    """See manifest.Probe; `offset` counts from the part's beginning."""

    offset: Aligned
    length: Annotated[int, Field(gt=0, le=PROBE, multiple_of=ALIGNMENT)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class StoredDrive(_Stored):
    """A part that is a stretch of a drive. `volume` is its superblock's UUID, `model` the import in its directory."""

    serial: Annotated[str, Field(min_length=1, max_length=SERIAL_BYTES)]
    nsid: Annotated[int, Field(ge=1, lt=0xFFFFFFFF)]
    volume: Identifier
    model: Identifier
    offset: Offset
    size: Aligned
    probes: Annotated[tuple[StoredProbe, ...], Field(max_length=2)]


class StoredSource(_Stored):
    """See manifest.SourceFile."""

    path: Name
    size: Size
    mtime_ns: Annotated[int, Field(ge=-(1 << 62), lt=1 << 62)]
    inode: Annotated[int, Field(ge=0, lt=1 << 64)]
    sample: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""


def _kind_of_part(part: object) -> str:
    return DRIVE if isinstance(part, dict | StoredDrive) else FILE


# What a path may be is for weights.store to say.
StoredPart = Annotated[Annotated[Name, Tag(FILE)] | Annotated[StoredDrive, Tag(DRIVE)], Discriminator(_kind_of_part)]


class StoredModel(_Stored):
    """manifest.json. `parts` are absolute paths or stretches of drives, `part_bytes` their sizes.

    Version 1 knew neither drives nor sources.
    """

    version: Literal[1, 2]
    name: Name
    parts: Annotated[tuple[StoredPart, ...], Field(min_length=1, max_length=MOST_DRIVES)]
    part_bytes: Annotated[tuple[Size, ...], Field(min_length=1, max_length=MOST_DRIVES)]
    shapes: dict[Name, Shape]
    types: dict[Name, Name]
    bytes_by_type: dict[Name, Size]
    constants: StoredSegment
    layers: Annotated[tuple[StoredSegment, ...], FailFast(), Field(min_length=1)]
    head: Annotated[tuple[StoredSegment, ...], FailFast(), Field(min_length=1)]
    embedding: StoredEmbedding
    sources: Annotated[tuple[StoredSource, ...], Field(max_length=MOST_PARTS)] = ()

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        on_drives = any(isinstance(part, StoredDrive) for part in self.parts)
        if (self.version == 1 and (on_drives or self.sources)) or (self.version > 1 and not self.sources):
            raise ValueError(f"version {self.version} has no drives and sources, or lacks its sources")
        return self


def probe_stretches(size: int) -> tuple[tuple[int, int], ...]:
    """(offset, length) of what is probed of a part of `size` bytes: its first and its last MiB, or all of it."""
    length = min(PROBE, size)
    return tuple((offset, length) for offset in sorted({0, size - length}) if length)


def damaged(path: str, problem: str, field: str = "") -> BadModelFile:
    """The error for a store that cannot be what the importer wrote."""
    problem = problem[:400].encode(errors="backslashreplace").decode()
    return BadModelFile(f"{path}: {problem}", "the store is damaged: import the model again", field=field)


def parse_manifest(path: str, raw: bytes) -> StoredModel:
    """manifest.json as checked data. Raises BadModelFile naming the field."""
    try:
        return StoredModel.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in (FILE, DRIVE))
        field = field[:200].encode(errors="backslashreplace").decode()
        raise damaged(path, f"{field}: {first['msg']}", field) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {error}") from None


def stored_segment(segment: Segment, checksum: int) -> StoredSegment:
    """A segment as manifest.json has it."""
    return StoredSegment(
        name=segment.name,
        extents=tuple(StoredExtent(file=e.file, offset=e.offset, length=e.length, target=e.target)
                      for e in segment.extents),
        tensors=tuple(StoredTensor(name=t.name, type=t.type.name, shape=t.shape, offset=t.offset)
                      for t in segment.tensors),
        nbytes=segment.nbytes,
        first_row=segment.first_row,
        checksum=f"{checksum:016x}",
    )
