"""How does a GGUF become aligned, checksummed segments, striped over drives, even when it is interrupted?

Each finished segment is written, synced and noted in a journal with its checksum. A later attempt reads such segments
back and goes on behind them. The manifest comes last, by rename: nothing half-written is ever taken for whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import xxhash

from nvstreamd.errors import InvalidRequest, StorageError, StorageFull
from nvstreamd.weights.durable import (
    COPY,
    gather,
    journaled,
    open_plain,
    read_into,
    sync_directory,
    write,
    write_whole,
)
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.gguf import read_header
from nvstreamd.weights.layout import lay_out
from nvstreamd.weights.manifest import Manifest, Segment
from nvstreamd.weights.placement import MIB, mib
from nvstreamd.weights.store import (
    HEADER_NAME,
    LARGEST_MANIFEST,
    MANIFEST_NAME,
    MOST_DRIVES,
    SUFFIX,
    StoredEmbedding,
    StoredExtent,
    StoredModel,
    StoredSegment,
    StoredTensor,
)

JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of segments done of all, and how many of them an earlier attempt had written."""

    done: int
    total: int
    resumed: int


class Importer:
    """One import. `run` may be called again after any interruption, with the same arguments.

    Parts go to `directories`, one a drive; manifest and header to `home`, by default the first of them.
    """

    def __init__(self, name: str, manifest: Manifest, files: Sequence[OpenFile], directories: Sequence[Path],
                 home: Path | None = None) -> None:
        if manifest.packed:
            raise InvalidRequest(f"{manifest.paths[0]} is part of a packed model already", "import a GGUF file",
                                 field="source")
        if not 1 <= len(directories) <= MOST_DRIVES:
            raise InvalidRequest(f"{len(directories)} directories are named", f"name 1 to {MOST_DRIVES}",
                                 field="directories")
        self.name = name
        self.manifest = manifest
        self.files = files
        self.homes = [Path(os.path.abspath(directory / f"{name}{SUFFIX}")) for directory in directories]
        self.index = Path(os.path.abspath((home or directories[0]) / f"{name}{SUFFIX}"))
        self.layout = lay_out(manifest, len(directories))
        self._done = 0
        self._resumed = 0

    def run(self, report: Callable[[Progress], None]) -> Path:
        """Writes the store; returns the directory of its manifest. Raises StorageFull, StorageError or ModelChanged."""
        self._done = self._resumed = 0
        try:
            return self._run(report)
        except OSError as error:
            raise self._translated(error) from error

    def _run(self, report: Callable[[Progress], None]) -> Path:
        with ExitStack() as stack:
            for home in (self.index, *self.homes):
                home.mkdir(parents=True, exist_ok=True)
            self._lock(stack)
            self._check_space()
            known = self._journal()
            parts = self._open_parts(stack)
            journal = stack.enter_context((self.index / JOURNAL_NAME).open("a"))
            checksums = []
            sources = (self.manifest.constants, *self.manifest.passes_over)
            for source, target in zip(sources, self.layout.segments, strict=True):
                checksums.append(self._one(source, target, parts, known.get(target.name), journal.fileno()))
                report(Progress(self._done, sum(s.nbytes for s in self.layout.segments), self._resumed))
            table = self._embedding(parts[0])
            self._check_sources()
            self._finish(parts, self._stored(checksums, table))
        return self.index

    def _lock(self, stack: ExitStack) -> None:
        """An engine that lost its daemon goes on for a moment; two at once would mix their segments."""
        fd = os.open(self.index, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{self.index}: another import writes it", "wait for its end, then run this again"
                               ) from None

    def _check_space(self) -> None:
        """Raises StorageFull before anything is touched: an older store of this name stays whole."""
        needed: Counter[int] = Counter()
        free: dict[int, int] = {}
        for number, (home, size) in enumerate(zip(self.homes, self.layout.part_bytes, strict=True)):
            part, device = home / f"part-{number}.bin", home.stat().st_dev
            needed[device] += size - min(size, part.lstat().st_blocks * 512 if part.exists() else 0)
            space = os.statvfs(home)
            free[device] = space.f_bavail * space.f_frsize
            if needed[device] > free[device]:
                raise StorageFull(
                    f"{home}: {mib(needed[device])} more are needed for {self.name}, {free[device] // MIB}MiB are free",
                    "free some space or name other directories, then run the same import again",
                )

    def _open_parts(self, stack: ExitStack) -> list[int]:
        parts = []
        for number, (home, size) in enumerate(zip(self.homes, self.layout.part_bytes, strict=True)):
            fd = open_plain(home / f"part-{number}.bin")
            stack.callback(os.close, fd)
            os.posix_fallocate(fd, 0, size) if size else None
            os.ftruncate(fd, size)
            parts.append(fd)
        return parts

    def _identity(self) -> dict[str, object]:
        """What an earlier attempt must have had in common with this one to be continued."""
        return {
            "source": [[file.path, file.size, file.mtime_ns, file.inode] for file in self.files],
            "parts": [str(home) for home in self.homes],
            "layout": xxhash.xxh3_64_hexdigest(repr(self.layout).encode()),
        }

    def _journal(self) -> dict[str, int]:
        """{segment: checksum} of an earlier attempt at the same import; starts a new journal otherwise."""
        path = self.index / JOURNAL_NAME
        identity = json.dumps(self._identity())
        known = journaled(path, identity)
        # An older store of this name is no longer whole from here on.
        (self.index / MANIFEST_NAME).unlink(missing_ok=True)
        # Written anew: what is appended must not end up behind half a line.
        lines = [identity, *(json.dumps([name, f"{checksum:016x}"]) for name, checksum in known.items())]
        write_whole(path, "".join(line + "\n" for line in lines).encode())
        return known

    def _check_sources(self) -> None:
        for file in self.files:
            file.check_unchanged()

    def _one(self, source: Segment, target: Segment, parts: list[int], known: int | None, journal: int) -> int:
        """Writes one segment, unless it is there already; returns its checksum."""
        self._done += target.nbytes
        if known is not None and xxhash.xxh3_64_intdigest(gather(target, parts)) == known:
            self._resumed += target.nbytes
            return known
        content = self._content(source, target)
        # Before the journal vouches for it: a file restored later, times and all, would find a mixture.
        self._check_sources()
        for extent in target.extents:
            write(parts[extent.file], content[extent.target : extent.target + extent.length], extent.offset)
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
            read_into(self.files[extent.file], begin, content[new.offset : new.offset + new.nbytes])
        return content

    def _embedding(self, part: int) -> StoredEmbedding:
        """Writes the table, which is no segment, anew at every attempt."""
        table = self.manifest.embedding
        piece = table.pieces[0]
        total = table.rows * table.type.row_bytes(table.columns)
        digest = xxhash.xxh3_64()
        for done in range(0, total, COPY):
            block = memoryview(bytearray(min(COPY, total - done)))
            read_into(self.files[piece.file], piece.offset + done, block)
            write(part, block, self.layout.embedding_offset + done)
            digest.update(block)
        os.fdatasync(part)
        return StoredEmbedding(type=table.type.name, columns=table.columns, rows=table.rows,
                               offset=self.layout.embedding_offset, checksum=digest.hexdigest())

    def _finish(self, parts: list[int], stored: StoredModel) -> None:
        """Header, then manifest, each durable before the next."""
        for part in parts:
            os.fsync(part)
        for home in {self.index, *self.homes}:
            sync_directory(home)
            sync_directory(home.parent)
        _, _, base = read_header(self.files[0])
        # A part without tensors may end before the padding.
        header = memoryview(bytearray(min(base, self.files[0].size)))
        read_into(self.files[0], 0, header)
        write_whole(self.index / HEADER_NAME, bytes(header))
        content = stored.model_dump_json().encode()
        if len(content) > LARGEST_MANIFEST:
            raise StorageError(f"{self.index}: a manifest of {len(content)} bytes is too large",
                               "import into fewer directories")
        write_whole(self.index / MANIFEST_NAME, content)
        (self.index / JOURNAL_NAME).unlink(missing_ok=True)

    def _stored(self, checksums: Sequence[int], embedding: StoredEmbedding) -> StoredModel:
        segments = [_stored_segment(s, c) for s, c in zip(self.layout.segments, checksums, strict=True)]
        layers = len(self.manifest.layers)
        return StoredModel(
            version=1,
            name=self.name,
            parts=tuple(str(home / f"part-{n}.bin") for n, home in enumerate(self.homes)),
            part_bytes=self.layout.part_bytes,
            shapes=self.manifest.shapes,
            types=self.manifest.types,
            bytes_by_type=self.manifest.bytes_by_type,
            constants=segments[0],
            layers=tuple(segments[1 : 1 + layers]),
            head=tuple(segments[1 + layers :]),
            embedding=embedding,
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
