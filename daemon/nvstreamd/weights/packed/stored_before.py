"""How is a manifest.json read, whichever version of it was written?

Versions 1 and 2 had layers and head in lists of their own, under names that told their tensors: version 2 added drives
and the files that a model was made of. What comes out is always what version 3 says.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import FailFast, Field, ValidationError, model_validator

from nvstreamd.errors import BadModelFile
from nvstreamd.weights.packed.stored import (
    DRIVE,
    FILE,
    VERSION,
    Checksum,
    Length,
    Name,
    PartBytes,
    Shape,
    Size,
    Stored,
    StoredDrive,
    StoredEmbedding,
    StoredExtent,
    StoredModel,
    StoredParts,
    StoredSegment,
    StoredSlice,
    StoredSources,
    damaged,
)

READERS = "nvstreamd 0.1.0 and later"


class TensorBefore(Stored):
    """A tensor in its segment, of a layer under its name without `blk.N.`; of the head, some of its rows."""

    name: Name
    type: Name
    shape: Shape
    offset: Size


class SegmentBefore(Stored):
    """A layer, a part of the head or the constants. `first_row` counts the head's rows."""

    name: Name
    extents: Annotated[tuple[StoredExtent, ...], FailFast()]
    tensors: Annotated[tuple[TensorBefore, ...], FailFast()]
    nbytes: Length
    first_row: Size = 0
    checksum: Checksum

    def now(self) -> StoredSegment:
        """The same as version 3 says it."""
        prefix = f"blk.{self.name.removeprefix('layer.')}." if self.name.startswith("layer.") else ""
        return StoredSegment(
            key=self.name, extents=self.extents, nbytes=self.nbytes, checksum=self.checksum,
            tensors=tuple(StoredSlice(name=each.name, tensor=prefix + each.name, first=self.first_row, type=each.type,
                                      shape=each.shape, offset=each.offset) for each in self.tensors))


class ModelBefore(Stored):
    """manifest.json of version 1 or 2."""

    version: Literal[1, 2]
    name: Name
    parts: StoredParts
    part_bytes: PartBytes
    shapes: dict[Name, Shape]
    types: dict[Name, Name]
    bytes_by_type: dict[Name, Size]
    constants: SegmentBefore
    layers: Annotated[tuple[SegmentBefore, ...], FailFast(), Field(min_length=1)]
    head: Annotated[tuple[SegmentBefore, ...], FailFast(), Field(min_length=1)]
    embedding: StoredEmbedding
    sources: StoredSources = ()

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        on_drives = any(isinstance(part, StoredDrive) for part in self.parts)
        if (self.version == 1 and (on_drives or self.sources)) or (self.version > 1 and not self.sources):
            raise ValueError(f"version {self.version} has no drives and sources, or lacks its sources")
        return self

    def now(self) -> StoredModel:
        """The same as version 3 says it."""
        return StoredModel(
            version=VERSION, readers=READERS, name=self.name, parts=self.parts, part_bytes=self.part_bytes,
            shapes=self.shapes, types=self.types, bytes_by_type=self.bytes_by_type, embedding=self.embedding,
            sources=self.sources,
            segments=tuple(segment.now() for segment in (self.constants, *self.layers, *self.head)))


def parse_manifest(path: str, raw: bytes) -> StoredModel:
    """manifest.json as checked data. Raises BadModelFile naming the field, or the programs that read it."""
    try:
        found = json.loads(raw)
        version = found.get("version") if isinstance(found, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise _later(path, version, found.get("readers"))
        if version in (1, 2):
            return ModelBefore.model_validate(found).now()
        stored = StoredModel.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in (FILE, DRIVE))
        field = field[:200].encode(errors="backslashreplace").decode()
        raise damaged(path, f"{field}: {first['msg']}", field) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {error}") from None
    if not stored.sources:
        raise damaged(path, "sources: there are none", "sources")
    return stored


def _later(path: str, version: int, readers: object) -> BadModelFile:
    known = readers[:100] if isinstance(readers, str) else "a later nvstreamd"
    known = known.encode(errors="backslashreplace").decode()
    return BadModelFile(f"{path}: version {str(version)[:20]} of the manifest is newer than this program knows",
                        f"read it with {known}, or import the model again", field="version")
