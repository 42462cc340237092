"""What does a packed model look like on disk, and is this one whole?

NAME.nvs/ in the store holds manifest.json and header.gguf (the GGUF's own header: metadata, tokenizer). The parts are
files NAME.nvs/part-N.bin, there and in further directories, one a drive; or stretches of whole drives (`volume`).
manifest.json is written last and renamed into place: without it there is no model.

The manifest is hostile: whoever may write a directory of models writes it. So it can name nothing but part-N.bin in a
directory NAME.nvs (`files` refuses links and whatever is no regular file) or what a drive itself says it carries
(`drive_files`); what is not beside it is opened with the rights of whose manifest it is. And it is held against itself:
shapes, segments and sizes must tell the same story. Which slices a segment must have is the architecture's to check.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path

from nvstreamd import ggml
from nvstreamd.errors import BadModelFile, NotFound
from nvstreamd.pieces import Kind, Slice
from nvstreamd.weights.packed.files import PACKED_SUFFIX, Elsewhere, OpenFile, open_regular
from nvstreamd.weights.packed.follow import is_trusted
from nvstreamd.weights.packed.gguf import read_header
from nvstreamd.weights.packed.manifest import (
    TABLE,
    DriveHome,
    Embedding,
    EmbeddingPiece,
    Extent,
    Manifest,
    Placed,
    Probe,
    Segment,
    SourceFile,
    shape_of,
)
from nvstreamd.weights.packed.stored import (
    FIRST_PART,
    StoredDrive,
    StoredModel,
    StoredPart,
    StoredSegment,
    StoredSlice,
    StoredSource,
    damaged,
    key_of,
    probe_stretches,
)
from nvstreamd.weights.packed.stored_before import parse_manifest

SUFFIX = PACKED_SUFFIX
MANIFEST_NAME = "manifest.json"
HEADER_NAME = "header.gguf"
LARGEST_MANIFEST = 32 << 20


def files_of(directory: Path) -> list[Path | Elsewhere | DriveHome]:
    """The files to open for a packed model: manifest, header, and each part as a file or as a stretch of a drive.

    Raises NotFound without such a directory, BadModelFile when it is not whole or names what no importer wrote.
    """
    path = directory / MANIFEST_NAME
    stored, owner = _stored_by(directory)
    parts = [_part(str(path), stored, number) for number in range(len(stored.parts))]
    return [path, directory / HEADER_NAME,
            *(part if isinstance(part, DriveHome) or part.parent == directory else _named_by(owner, part)
              for part in parts)]


def sources_of(directory: Path) -> tuple[list[Path | Elsewhere], tuple[StoredSource, ...]]:
    """The files that a packed model was made from, and what they were then. Raises NotFound or BadModelFile."""
    stored, owner = _stored_by(directory)
    _check_sources(str(directory / MANIFEST_NAME), stored)
    return [_named_by(owner, Path(source.path)) for source in stored.sources], stored.sources


def _named_by(owner: int, path: Path) -> Path | Elsewhere:
    return path if is_trusted(owner) else Elsewhere(path, owner)


def stored_at(directory: Path) -> StoredModel:
    """The content of a packed model's manifest. Raises NotFound or BadModelFile."""
    return _stored_by(directory)[0]


def _stored_by(directory: Path) -> tuple[StoredModel, int]:
    """The content of the manifest, and the uid whose word that is."""
    path = directory / MANIFEST_NAME
    try:
        raw, owner = _read_manifest(path)
    except NotFound:
        if not directory.exists():
            raise NotFound(f"{directory} does not exist", "check the path") from None
        raise BadModelFile(f"{directory} has no {MANIFEST_NAME}", "the import did not finish: run it again") from None
    return parse_manifest(str(path), raw), owner


def _read_manifest(path: Path) -> tuple[bytes, int]:
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        raw, owner = file.read(LARGEST_MANIFEST + 1), os.fstat(fd).st_uid
    if len(raw) > LARGEST_MANIFEST:
        raise damaged(str(path), f"is larger than {LARGEST_MANIFEST >> 20} MiB")
    return raw, owner


def _part(path: str, stored: StoredModel, number: int) -> Path | DriveHome:
    """A part under the only names that the importer gives."""
    part = stored.parts[number]
    if isinstance(part, StoredDrive):
        return _home(part)
    wanted = Path(f"{stored.name}{SUFFIX}", f"part-{number}.bin")
    if not _is_plain(part) or Path(part).parts[-2:] != wanted.parts:
        raise damaged(path, f"parts.{number}: {part[:200]!r} is not an absolute path ending in {wanted}",
                      f"parts.{number}")
    return Path(part)


def _is_plain(path: str) -> bool:
    return Path(path).is_absolute() and ".." not in Path(path).parts and "\0" not in path


def _home(part: StoredDrive) -> DriveHome:
    probes = tuple(Probe(part.offset + probe.offset, probe.length, probe.digest) for probe in part.probes)
    return DriveHome(part.serial, part.nsid, part.offset, part.size, probes, part.volume, part.model)


def read(files: Sequence[OpenFile]) -> Manifest:
    """The manifest of a packed model from its open files, in the order of `files_of`. Raises BadModelFile."""
    path = files[0].path
    stored = parse_manifest(path, files[0].read(min(files[0].size, LARGEST_MANIFEST), 0))
    parts = files[FIRST_PART:]
    _check_sizes(path, stored, parts)
    _check_sources(path, stored)
    homes = tuple(_home(part) if isinstance(part, StoredDrive) else None for part in stored.parts)
    begins = [home.offset if home else 0 for home in homes]
    metadata, _, _ = read_header(files[1])
    sizes_of_types = _check_types(path, stored)
    for segment in stored.segments:
        _check_extents(path, segment, stored.part_bytes)
    _check_slices(path, stored)
    segments = tuple(_segment(path, stored, segment, begins) for segment in stored.segments)
    if segments[0].key.kind is not Kind.CONSTANTS:
        raise damaged(path, f"segments: the first is {segments[0].name}, not the constants", "segments.0")
    return Manifest(
        paths=tuple(part.path for part in parts),
        packed=True,
        metadata=metadata,
        shapes=dict(stored.shapes),
        types=dict(stored.types),
        bytes_by_type=sizes_of_types,
        constants=segments[0],
        segments=segments[1:],
        embedding=_embedding(path, stored, begins[0]),
        homes=homes,
        sources=tuple(SourceFile(each.path, each.size, each.mtime_ns, each.inode) for each in stored.sources),
        readers=stored.readers,
    )


def _check_sizes(path: str, stored: StoredModel, parts: Sequence[OpenFile]) -> None:
    """A file is as large as its part; a drive holds it, and its probes are those that the importer takes."""
    sizes = [_size_of(part, file) for part, file in zip(stored.parts, parts, strict=False)]
    if len(parts) != len(stored.parts) or sizes != list(stored.part_bytes):
        found = ", ".join(f"{part.path}: {part.size}" for part in parts)
        raise damaged(path, f"parts have other sizes than when they were written ({found})", "part_bytes")
    for number, part in enumerate(stored.parts):
        if isinstance(part, StoredDrive) and \
                tuple((probe.offset, probe.length) for probe in part.probes) != probe_stretches(part.size):
            raise damaged(path, f"parts.{number}.probes: are not of the part's first and last MiB", "parts")


def _size_of(part: StoredPart, file: OpenFile) -> int | None:
    if isinstance(part, StoredDrive):
        return part.size if part.offset + part.size <= file.size else None
    return file.size


def _check_sources(path: str, stored: StoredModel) -> None:
    for number, source in enumerate(stored.sources):
        if not _is_plain(source.path):
            raise damaged(path, f"sources.{number}: {source.path[:200]!r} is no absolute path", f"sources.{number}")


def _kind(path: str, name: str) -> ggml.GgmlType:
    kind = ggml.BY_NAME.get(name)
    if kind is None:
        raise damaged(path, f"type {name[:40]!r} is unknown")
    return kind


def _check_types(path: str, stored: StoredModel) -> dict[str, int]:
    """Every shape has a type that can have it; returns {type: bytes}, which must be what the manifest says."""
    if stored.shapes.keys() != stored.types.keys():
        raise damaged(path, "shapes and types name different tensors", "types")
    total: Counter[str] = Counter()
    for name, shape in stored.shapes.items():
        kind = _kind(path, stored.types[name])
        if shape[-1] % kind.block_length:
            raise damaged(path, f"shapes.{name[:100]}: {shape} is impossible for {kind.name}", "shapes")
        total[kind.name] += prod(shape) // kind.block_length * kind.block_bytes
    if dict(total) != stored.bytes_by_type or sum(total.values()) > sum(stored.part_bytes):
        raise damaged(path, "bytes_by_type is not what shapes and types add up to, or more than the parts hold",
                      "bytes_by_type")
    return dict(total)


def _check_extents(path: str, segment: StoredSegment, part_bytes: Sequence[int]) -> None:
    """Extents fill the slot from front to back: bytes that nobody read would be another segment's."""
    filled = 0
    for extent in segment.extents:
        inside = extent.file < len(part_bytes) and extent.offset + extent.length <= part_bytes[extent.file]
        if not inside or extent.target != filled:
            raise damaged(path, f"{segment.key}: an extent lies outside of its part or its slot", "extents")
        filled += extent.length
    if filled != segment.nbytes:
        raise damaged(path, f"{segment.key}: extents bring {filled} of {segment.nbytes} bytes", "extents")


def _check_slices(path: str, stored: StoredModel) -> None:
    """Each segment has a key of its own, and all of them together hold every tensor once.

    The embedding's table lies apart; segments hold it, too, where it is the head.
    """
    if len({segment.key for segment in stored.segments}) != len(stored.segments):
        raise damaged(path, "segments: two have one key", "segments")
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for segment in stored.segments:
        for tensor in segment.tensors:
            begin, end = _rows_of(path, stored, segment.key, tensor)
            found[tensor.tensor].append((begin, end))
    if TABLE not in found and TABLE in stored.shapes:
        found[TABLE].append((0, stored.shapes[TABLE][0]))
    for name, shape in stored.shapes.items():
        reached = 0
        for begin, end in sorted(found[name]):
            reached = end if begin == reached else -1
        if reached != shape[0]:
            raise damaged(path, f"segments do not hold each row of {name[:100]} once", name[:100])


def _slice(stored: StoredModel, tensor: StoredSlice) -> Slice:
    """The slice; one of a tensor of more dimensions than it has itself is one matrix."""
    whole = stored.shapes[tensor.tensor]
    return Slice(tensor.name, tensor.tensor, tensor.first, tensor.shape[0] if len(tensor.shape) == len(whole) else 1)


def _rows_of(path: str, stored: StoredModel, key: str, tensor: StoredSlice) -> tuple[int, int]:
    """The part of the tensor's outermost dimension that a slice says it is, which must be one."""
    whole = stored.shapes.get(tensor.tensor)
    if whole is not None and stored.types[tensor.tensor] == tensor.type:
        part = _slice(stored, tensor)
        if shape_of(whole, part) == tensor.shape and part.first + part.count <= whole[0] \
                and (len(whole) > 1 or part.count == whole[0]):
            return part.first, part.first + part.count
    raise damaged(path, f"{key}: {tensor.name[:100]} is no slice of a tensor that shapes and types have", key)


def _embedding(path: str, stored: StoredModel, begin: int) -> Embedding:
    table = stored.embedding
    kind = _kind(path, table.type)
    same = (table.rows, table.columns) == stored.shapes.get(TABLE) \
        and table.type == stored.types[TABLE]
    if not same or table.offset + table.rows * kind.row_bytes(table.columns) > stored.part_bytes[0]:
        raise damaged(path, f"embedding: is not {TABLE}, or ends past part 0", "embedding")
    pieces = (EmbeddingPiece(0, table.rows, 0, begin + table.offset),)
    return Embedding(kind, table.columns, table.rows, pieces, int(table.checksum, 16))


def _segment(path: str, stored: StoredModel, segment: StoredSegment, begins: Sequence[int]) -> Segment:
    tensors = tuple(Placed(_slice(stored, tensor), _kind(path, tensor.type), tensor.shape, tensor.offset)
                    for tensor in segment.tensors)
    for placed in tensors:
        if placed.offset + placed.nbytes > segment.nbytes:
            raise damaged(path, f"{segment.key}: {placed.name[:100]} lies outside of the segment", segment.key)
    extents = tuple(Extent(e.file, begins[e.file] + e.offset, e.length, e.target) for e in segment.extents)
    return Segment(key_of(segment.key), extents, tensors, segment.nbytes, int(segment.checksum, 16))
