"""What does a packed model look like on disk, and is this one whole?

NAME.nvs/ in the first directory holds manifest.json, header.gguf (the GGUF's own header: metadata, tokenizer) and
part-0.bin; each further directory (drive) holds NAME.nvs/part-N.bin. manifest.json is written last and renamed into
place: without it there is no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvstreamd import ggml
from nvstreamd.errors import BadModelFile
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.gguf import read_header
from nvstreamd.weights.manifest import (
    ALIGNMENT,
    Embedding,
    EmbeddingPiece,
    Extent,
    Manifest,
    Place,
    Segment,
)

SUFFIX = ".nvs"
MANIFEST_NAME = "manifest.json"
HEADER_NAME = "header.gguf"
FIRST_PART = 2
LARGEST_MANIFEST = 256 << 20
Size = Annotated[int, Field(ge=0, lt=1 << 62)]
Aligned = Annotated[int, Field(ge=0, lt=1 << 62, multiple_of=ALIGNMENT)]
Dimension = Annotated[int, Field(ge=1, lt=1 << 48)]
Name = Annotated[str, Field(min_length=1, max_length=1 << 16)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredExtent(_Stored):
    """See manifest.Extent."""

    file: Size
    offset: Aligned
    length: Aligned
    target: Aligned


class StoredTensor(_Stored):
    """See manifest.Place."""

    name: Name
    type: Name
    shape: tuple[Dimension, ...]
    offset: Size


class StoredSegment(_Stored):
    """See manifest.Segment; `checksum` is XXH3-64 in hexadecimal."""

    name: Name
    extents: tuple[StoredExtent, ...]
    tensors: tuple[StoredTensor, ...]
    nbytes: Aligned
    first_row: Size = 0
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class StoredEmbedding(_Stored):
    """The token embedding, in one piece in part 0."""

    type: Name
    columns: Dimension
    rows: Dimension
    offset: Aligned


class StoredModel(_Stored):
    """manifest.json. `parts` are absolute paths, `part_bytes` their sizes."""

    version: Literal[1]
    name: Name
    parts: tuple[Name, ...]
    part_bytes: tuple[Size, ...]
    shapes: dict[Name, tuple[Dimension, ...]]
    types: dict[Name, Name]
    bytes_by_type: dict[Name, Size]
    constants: StoredSegment
    layers: tuple[StoredSegment, ...]
    head: tuple[StoredSegment, ...]
    embedding: StoredEmbedding


def damaged(path: str, problem: str) -> BadModelFile:
    """The error for a store that cannot be what the importer wrote."""
    return BadModelFile(f"{path}: {problem}", "import the model again")


def parse_manifest(path: str, raw: bytes) -> StoredModel:
    """manifest.json as checked data. Raises BadModelFile naming the field."""
    try:
        return StoredModel.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadModelFile(f"{path}: {field}: {first['msg']}", "import the model again", field=field) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {error}") from None


def files_of(directory: Path) -> list[Path]:
    """The files of a packed model: manifest, header, parts. Raises BadModelFile when it is not whole."""
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise damaged(str(path), "is too large")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadModelFile(f"{directory} has no {MANIFEST_NAME}", "the import did not finish: run it again") from None
    stored = parse_manifest(str(path), raw)
    return [path, directory / HEADER_NAME, *(Path(part) for part in stored.parts)]


def read(files: Sequence[OpenFile]) -> Manifest:
    """The manifest of a packed model from its open files, in the order of `files_of`. Raises BadModelFile."""
    raw = os.pread(files[0].fd, min(files[0].size, LARGEST_MANIFEST), 0)
    stored = parse_manifest(files[0].path, raw)
    parts = files[FIRST_PART:]
    if [part.size for part in parts] != list(stored.part_bytes):
        sizes = ", ".join(f"{part.path}: {part.size}" for part in parts)
        raise damaged(files[0].path, f"parts have other sizes than when they were written ({sizes})")
    metadata, _, _ = read_header(files[1])
    everything = (stored.constants, *stored.layers, *stored.head)
    for segment in everything:
        _check(files[0].path, segment, stored.part_bytes)
    embedding = stored.embedding
    kind = _kind(files[0].path, embedding.type)
    if embedding.offset + embedding.rows * kind.row_bytes(embedding.columns) > stored.part_bytes[0]:
        raise damaged(files[0].path, "the embedding ends past part 0")
    return Manifest(
        paths=tuple(part.path for part in parts),
        packed=True,
        metadata=metadata,
        shapes=dict(stored.shapes),
        types=dict(stored.types),
        bytes_by_type=dict(stored.bytes_by_type),
        constants=_segment(files[0].path, stored.constants),
        layers=tuple(_segment(files[0].path, segment) for segment in stored.layers),
        head=tuple(_segment(files[0].path, segment) for segment in stored.head),
        embedding=Embedding(kind, embedding.columns, embedding.rows,
                            (EmbeddingPiece(0, embedding.rows, 0, embedding.offset),)),
    )


def _kind(path: str, name: str) -> ggml.GgmlType:
    kind = ggml.BY_NAME.get(name)
    if kind is None:
        raise damaged(path, f"type {name[:40]!r} is unknown")
    return kind


def _check(path: str, segment: StoredSegment, part_bytes: Sequence[int]) -> None:
    for extent in segment.extents:
        inside = extent.file < len(part_bytes) and extent.offset + extent.length <= part_bytes[extent.file]
        if not inside or extent.target + extent.length > segment.nbytes:
            raise damaged(path, f"{segment.name}: an extent lies outside of its part or its slot")


def _segment(path: str, stored: StoredSegment) -> Segment:
    places = tuple(Place(t.name, _kind(path, t.type), t.shape, t.offset) for t in stored.tensors)
    for place in places:
        if place.shape[-1] % place.type.block_length or place.offset + place.nbytes > stored.nbytes:
            raise damaged(path, f"{stored.name}: tensor {place.name} lies outside of the segment")
    extents = tuple(Extent(e.file, e.offset, e.length, e.target) for e in stored.extents)
    return Segment(stored.name, extents, places, stored.nbytes, stored.first_row, int(stored.checksum, 16))
