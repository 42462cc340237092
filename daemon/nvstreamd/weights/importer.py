"""How does a GGUF become aligned, checksummed segments, striped over drives, even when it is interrupted?

Each finished segment is written, synced and noted in a journal with its checksum. A later attempt reads such segments
back and goes on behind them. The manifest comes last, by rename: nothing half-written is ever taken for whole.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from nvstreamd.errors import StorageError, StorageFull
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.gguf import read_header
from nvstreamd.weights.manifest import Embedding, Extent, Manifest, Place, Segment, align_up
from nvstreamd.weights.placement import mib
from nvstreamd.weights.store import (
    HEADER_NAME,
    MANIFEST_NAME,
    SUFFIX,
    StoredEmbedding,
    StoredExtent,
    StoredModel,
    StoredSegment,
    StoredTensor,
)

# Tensors start on cache lines; stripes are as long as the streamer's reads.
TENSOR_ALIGNMENT = 64
STRIPE = 1 << 20
COPY = 8 << 20
JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of segments done of all, and how many of them an earlier attempt had written."""

    done: int
    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything will lie: packed segments in pass order, the embedding, the size of each part."""

    segments: tuple[Segment, ...]
    embedding_offset: int
    part_bytes: tuple[int, ...]


def packed(segment: Segment) -> Segment:
    """The segment with its tensors one behind the other; no extents yet."""
    places: list[Place] = []
    end = 0
    for place in segment.tensors:
        offset = -(-end // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
        places.append(replace(place, offset=offset))
        end = offset + place.nbytes
    return replace(segment, tensors=tuple(places), nbytes=align_up(end), extents=())


def striped(segment: Segment, number: int, ends: list[int]) -> Segment:
    """The segment with extents over all parts; `ends` are the parts' sizes so far, and grow."""
    extents: list[Extent] = []
    drives = len(ends)
    stripe = segment.nbytes if drives == 1 else STRIPE
    for turn, target in enumerate(range(0, segment.nbytes, stripe)):
        drive = (number + turn) % drives
        length = min(stripe, segment.nbytes - target)
        extents.append(Extent(drive, ends[drive], length, target))
        ends[drive] += length
    return replace(segment, extents=tuple(extents))


def lay_out(manifest: Manifest, drives: int) -> Layout:
    """Where each byte of the store will lie. Pure."""
    ends = [0] * drives
    segments = tuple(
        striped(packed(segment), number, ends)
        for number, segment in enumerate((manifest.constants, *manifest.passes_over))
    )
    table = manifest.embedding
    embedding_offset = ends[0]
    ends[0] += align_up(table.rows * table.type.row_bytes(table.columns))
    return Layout(segments, embedding_offset, tuple(ends))


class Importer:
    """One import. `run` may be called again after any interruption, with the same arguments."""

    def __init__(self, name: str, manifest: Manifest, files: Sequence[OpenFile], directories: Sequence[Path]) -> None:
        self.name = name
        self.manifest = manifest
        self.files = files
        self.homes = [directory / f"{name}{SUFFIX}" for directory in directories]
        self.layout = lay_out(manifest, len(directories))
        self._done = 0
        self._resumed = 0

    def run(self, report: Callable[[Progress], None]) -> Path:
        """Writes the store; returns its first directory. Raises StorageFull, StorageError or ModelChanged."""
        try:
            return self._run(report)
        except OSError as error:
            raise self._translated(error) from error

    def _run(self, report: Callable[[Progress], None]) -> Path:
        with ExitStack() as stack:
            for home in self.homes:
                home.mkdir(parents=True, exist_ok=True)
            parts = self._open_parts(stack)
            known = self._journal()
            journal = stack.enter_context((self.homes[0] / JOURNAL_NAME).open("a"))
            checksums = []
            sources = (self.manifest.constants, *self.manifest.passes_over)
            for source, target in zip(sources, self.layout.segments, strict=True):
                checksums.append(self._one(source, target, parts, known.get(target.name), journal.fileno()))
                report(Progress(self._done, sum(s.nbytes for s in self.layout.segments), self._resumed))
            self._embedding(parts[0])
            for file in self.files:
                file.check_unchanged()
            self._finish(parts, checksums)
        return self.homes[0]

    def _open_parts(self, stack: ExitStack) -> list[int]:
        parts = []
        for number, (home, size) in enumerate(zip(self.homes, self.layout.part_bytes, strict=True)):
            fd = os.open(home / f"part-{number}.bin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, fd)
            os.posix_fallocate(fd, 0, size) if size else None
            os.ftruncate(fd, size)
            parts.append(fd)
        return parts

    def _identity(self) -> dict[str, object]:
        """What an earlier attempt must have had in common with this one to be continued."""
        return {
            "source": [[file.path, file.size, file.mtime_ns] for file in self.files],
            "parts": [str(home) for home in self.homes],
            "bytes": list(self.layout.part_bytes),
        }

    def _journal(self) -> dict[str, int]:
        """{segment: checksum} of an earlier attempt at the same import; starts a new journal otherwise."""
        path = self.homes[0] / JOURNAL_NAME
        identity = json.dumps(self._identity())
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        if not lines or lines[0] != identity:
            # An older store of this name is no longer whole from here on.
            (self.homes[0] / MANIFEST_NAME).unlink(missing_ok=True)
            path.write_text(identity + "\n")
            return {}
        entries = [json.loads(line) for line in lines[1:]]
        return {str(name): int(checksum, 16) for name, checksum in entries}

    def _one(self, source: Segment, target: Segment, parts: list[int], known: int | None, journal: int) -> int:
        """Writes one segment, unless it is there already; returns its checksum."""
        self._done += target.nbytes
        if known is not None and xxhash.xxh3_64_intdigest(_gather(target, parts)) == known:
            self._resumed += target.nbytes
            return known
        content = self._content(source, target)
        for extent in target.extents:
            _write(parts[extent.file], content[extent.target : extent.target + extent.length], extent.offset)
        for part in {extent.file for extent in target.extents}:
            os.fdatasync(parts[part])
        checksum = xxhash.xxh3_64_intdigest(content)
        os.write(journal, (json.dumps([target.name, f"{checksum:016x}"]) + "\n").encode())
        os.fsync(journal)
        return checksum

    def _content(self, source: Segment, target: Segment) -> memoryview:
        """The segment's bytes as they will lie in a slot."""
        content = memoryview(bytearray(target.nbytes))
        for old, new in zip(source.tensors, target.tensors, strict=True):
            extent = next(e for e in source.extents if e.target <= old.offset < e.target + e.length)
            begin = extent.offset + old.offset - extent.target
            _read_into(self.files[extent.file], begin, content[new.offset : new.offset + new.nbytes])
        return content

    def _embedding(self, part: int) -> None:
        table = self.manifest.embedding
        piece = table.pieces[0]
        total = table.rows * table.type.row_bytes(table.columns)
        for done in range(0, total, COPY):
            block = memoryview(bytearray(min(COPY, total - done)))
            _read_into(self.files[piece.file], piece.offset + done, block)
            _write(part, block, self.layout.embedding_offset + done)
        os.fdatasync(part)

    def _finish(self, parts: list[int], checksums: Sequence[int]) -> None:
        """Header, then manifest, each durable before the next."""
        for part in parts:
            os.fsync(part)
        _, _, base = read_header(self.files[0])
        header = memoryview(bytearray(base))
        _read_into(self.files[0], 0, header)
        _replace(self.homes[0] / HEADER_NAME, bytes(header))
        stored = self._stored(checksums)
        _replace(self.homes[0] / MANIFEST_NAME, stored.model_dump_json(indent=1).encode())
        (self.homes[0] / JOURNAL_NAME).unlink(missing_ok=True)

    def _stored(self, checksums: Sequence[int]) -> StoredModel:
        segments = [_stored_segment(s, c) for s, c in zip(self.layout.segments, checksums, strict=True)]
        layers = len(self.manifest.layers)
        table: Embedding = self.manifest.embedding
        return StoredModel(
            version=1,
            name=self.name,
            parts=tuple(str((home / f"part-{n}.bin").resolve()) for n, home in enumerate(self.homes)),
            part_bytes=self.layout.part_bytes,
            shapes=self.manifest.shapes,
            types=self.manifest.types,
            bytes_by_type=self.manifest.bytes_by_type,
            constants=segments[0],
            layers=tuple(segments[1 : 1 + layers]),
            head=tuple(segments[1 + layers :]),
            embedding=StoredEmbedding(type=table.type.name, columns=table.columns, rows=table.rows,
                                      offset=self.layout.embedding_offset),
        )

    def _translated(self, error: OSError) -> StorageFull | StorageError:
        homes = ", ".join(str(home) for home in self.homes)
        again = "then run the same import again: it resumes where it stopped"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = ", ".join(mib(size) for size in self.layout.part_bytes)
            return StorageFull(f"no space for {self.name} in {homes}: {os.strerror(error.errno)}, {needed} are needed",
                               f"free some space or name other directories, {again}")
        return StorageError(f"importing {self.name} into {homes} failed: {error}", f"mend the cause, {again}")


def _stored_segment(segment: Segment, checksum: int) -> StoredSegment:
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


def _gather(segment: Segment, parts: Sequence[int]) -> bytearray:
    """A written segment, read back."""
    content = bytearray(segment.nbytes)
    view = memoryview(content)
    for extent in segment.extents:
        os.preadv(parts[extent.file], [view[extent.target : extent.target + extent.length]], extent.offset)
    return content


def _chunks(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    for begin in range(0, len(view), COPY):
        yield begin, view[begin : begin + COPY]


def _read_into(file: OpenFile, offset: int, view: memoryview) -> None:
    for begin, chunk in _chunks(view):
        got = os.preadv(file.fd, [chunk], offset + begin)
        if got != len(chunk):
            file.check_unchanged()
            raise OSError(errno.EIO, f"{file.path}: {got} of {len(chunk)} bytes at offset {offset + begin}")


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view[:COPY], offset)
        view, offset = view[written:], offset + written


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    scratch = path.with_suffix(path.suffix + ".tmp")
    with scratch.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    scratch.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
