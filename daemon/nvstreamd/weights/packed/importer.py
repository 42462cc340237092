"""How does a GGUF become aligned, checksummed segments, striped over drives, even when it is interrupted?

Each finished segment is written, synced and noted in a journal with its checksum. A later attempt reads such segments
back and goes on behind them. The manifest comes last, by rename: nothing half-written is ever taken for whole.

On drives an older model of the name lies elsewhere, and stays whole until header and manifest are exchanged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import xxhash

from nvstreamd.errors import InvalidRequest, NvstreamError, StorageError, StorageFull, StorageRefused
from nvstreamd.sizes import mib
from nvstreamd.weights.packed.attempts import JOURNAL_NAME, Attempt, begin_journal, earlier
from nvstreamd.weights.packed.copying import content_of, copy_table, write_segment
from nvstreamd.weights.packed.durable import (
    Part,
    gather,
    put_in_place,
    read_into,
    sync_directory,
    write_beside,
)
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.gguf import read_header
from nvstreamd.weights.packed.layout import lay_out
from nvstreamd.weights.packed.manifest import Manifest, Segment
from nvstreamd.weights.packed.store import HEADER_NAME, LARGEST_MANIFEST, MANIFEST_NAME, SUFFIX, stored_at
from nvstreamd.weights.packed.stored import (
    MOST_DRIVES,
    READERS,
    VERSION,
    StoredDrive,
    StoredEmbedding,
    StoredModel,
    StoredPart,
    StoredSource,
    stored_segment,
)
from nvstreamd.weights.packed.targets import DirectoryTarget, Target, lengths_of, rates_of

# What may be otherwise the next time, with nothing mended.
PASSING = frozenset((errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
                     errno.ETIMEDOUT, errno.ESTALE))
NO_CHECKSUM = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of segments done of all, and how many of them an earlier attempt had written."""

    done: int
    total: int
    resumed: int


class Importer:
    """One import. `run` may be called again after any interruption, with the same arguments.

    Each target takes a part; manifest and header go to NAME.nvs in `home`. `rates` says how much a target takes in
    relation to the others.
    """

    def __init__(self, name: str, manifest: Manifest, files: Sequence[OpenFile], targets: Sequence[Target], home: Path,
                 rates: Callable[[Sequence[Target]], list[int]] = rates_of) -> None:
        if manifest.packed:
            raise InvalidRequest(f"{manifest.paths[0]} is part of a packed model already", "import a GGUF file",
                                 field="source")
        if not 1 <= len(targets) <= MOST_DRIVES:
            raise InvalidRequest(f"{len(targets)} directories are named", f"name 1 to {MOST_DRIVES}",
                                 field="directories")
        self.name = name
        self.manifest = manifest
        self.files = files
        self.targets = targets
        self.index = Path(os.path.abspath(home / f"{name}{SUFFIX}"))
        self.layout = lay_out(manifest, [1] * len(targets))
        self._rates = rates
        self._done = 0
        self._resumed = 0

    def run(self, report: Callable[[Progress], None]) -> Path:
        """Writes the store; returns the directory of its manifest. Raises StorageFull, StorageError or ModelChanged."""
        self._done = self._resumed = 0
        try:
            return self._run(report)
        except OSError as error:
            raise self._translated(error) from error
        finally:
            self._leave_nothing_empty()

    def _leave_nothing_empty(self) -> None:
        """An import that failed before its first byte leaves no trace; a directory with anything in it stays."""
        for path in (self.index, *(target.home for target in self.targets if isinstance(target, DirectoryTarget))):
            with suppress(OSError):
                path.rmdir()

    def _run(self, report: Callable[[Progress], None]) -> Path:
        with ExitStack() as stack:
            self.index.mkdir(parents=True, exist_ok=True)
            self._lock(stack)
            for target in self.targets:
                target.open(stack)
            self._settle()
            attempt = self._attempt()
            self.layout = lay_out(self.manifest, attempt.weights)
            header = self._header()
            known, parts = self._begin(attempt, len(header), stack)
            journal = stack.enter_context((self.index / JOURNAL_NAME).open("a"))
            checksums = []
            sources = (self.manifest.constants, *self.manifest.segments)
            for source, target_segment in zip(sources, self.layout.segments, strict=True):
                checksums.append(self._one(source, target_segment, parts, known.get(target_segment.name),
                                           journal.fileno()))
                report(Progress(self._done, sum(s.nbytes for s in self.layout.segments), self._resumed))
            table = self._embedding(parts[0])
            self._check_sources()
            self._finish(attempt.model, parts, header, lambda stored: self._stored(stored, checksums, table))
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

    def _settle(self) -> None:
        """A power cut may have come between an older manifest and the drives' hearing of it."""
        try:
            older = stored_at(self.index)
        except NvstreamError:
            return
        for part in older.parts:
            if isinstance(part, StoredDrive):
                for target in self.targets:
                    target.settle(part.model)

    def _attempt(self) -> Attempt:
        """The one that the journal is of; a new one otherwise, for which drives are measured."""
        found = earlier(self.index / JOURNAL_NAME, len(self.targets), self._identity)
        return found or Attempt(uuid4().hex, tuple(self._rates(self.targets)))

    def _identity(self, attempt: Attempt) -> str:
        """The facts that an earlier attempt must have in common with this one to be continued."""
        return json.dumps({
            "source": [[file.path, file.size, file.mtime_ns, file.inode] for file in self.files],
            "parts": [target.identity() for target in self.targets],
            "layout": xxhash.xxh3_64_hexdigest(repr(lay_out(self.manifest, attempt.weights)).encode()),
            "model": attempt.model,
            "weights": attempt.weights,
        })

    def _begin(self, attempt: Attempt, header: int, stack: ExitStack) -> tuple[dict[str, int], list[Part]]:
        """The checksums that the journal vouches for, and the parts, their space taken.

        Raises StorageFull before anything is touched: an older store of this name stays whole.
        """
        lengths = [lengths_of(size, header, self._longest_manifest()) for size in self.layout.part_bytes]
        needed: Counter[int] = Counter()
        for target, own in zip(self.targets, lengths, strict=True):
            target.check_space(attempt.model, own, needed)
        known = begin_journal(self.index / JOURNAL_NAME, self._identity(attempt))
        if any(target.replaces for target in self.targets):
            # An older store of this name is no longer whole from here on.
            (self.index / MANIFEST_NAME).unlink(missing_ok=True)
        parts = [target.open_part(attempt.model, own, stack) for target, own in zip(self.targets, lengths, strict=True)]
        return known, parts

    def _longest_manifest(self) -> int:
        """Bytes of a manifest that has the most to say."""
        parts = [target.longest(size) for target, size in zip(self.targets, self.layout.part_bytes, strict=True)]
        table = self._stored_embedding(f"{NO_CHECKSUM:016x}")
        return len(self._stored(parts, [NO_CHECKSUM] * len(self.layout.segments), table).model_dump_json().encode())

    def _check_sources(self) -> None:
        for file in self.files:
            file.check_untouched()

    def _one(self, source: Segment, target: Segment, parts: list[Part], known: int | None, journal: int) -> int:
        """Writes one segment, unless it is there already; returns its checksum."""
        self._done += target.nbytes
        if known is not None and xxhash.xxh3_64_intdigest(gather(target, parts)) == known:
            self._resumed += target.nbytes
            return known
        content = content_of(source, target, self.files)
        # Before the journal vouches for it: a file restored later, times and all, would find a mixture.
        self._check_sources()
        checksum = write_segment(target, content, parts)
        os.write(journal, (json.dumps([target.name, f"{checksum:016x}"]) + "\n").encode())
        os.fsync(journal)
        return checksum

    def _embedding(self, part: Part) -> StoredEmbedding:
        """Writes the table, which is no segment, anew at every attempt."""
        digest = copy_table(self.manifest.embedding, self.files, part, self.layout.embedding_offset)
        return self._stored_embedding(digest)

    def _header(self) -> bytes:
        """The GGUF's own header, without weights."""
        _, _, base = read_header(self.files[0])
        # A part without tensors may end before the padding.
        header = memoryview(bytearray(min(base, self.files[0].size)))
        read_into(self.files[0], 0, header)
        return bytes(header)

    def _finish(self, model: str, parts: list[Part], header: bytes,
                stored: Callable[[Sequence[StoredPart]], StoredModel]) -> None:
        """Header, then manifest, each durable before the next; then drives hear that the model is whole."""
        for target, part in zip(self.targets, parts, strict=True):
            target.sync(part)
        for directory in (self.index, self.index.parent):
            sync_directory(directory)
        found = [target.stored(model, part) for target, part in zip(self.targets, parts, strict=True)]
        content = stored(found).model_dump_json().encode()
        if len(content) > LARGEST_MANIFEST:
            raise StorageRefused(f"{self.index}: a manifest of {len(content)} bytes is too large",
                                 "import into fewer directories")
        for target in self.targets:
            target.keep_copies(model, header, content)
        self._exchange(header, content)
        for target in self.targets:
            target.finish(model)
        self._tidy(found)

    def _exchange(self, header: bytes, manifest: bytes) -> None:
        """From here on there is this model. In between there is none: never one with the other's header."""
        names = [self.index / HEADER_NAME, self.index / MANIFEST_NAME]
        written = [write_beside(name, content) for name, content in zip(names, (header, manifest), strict=True)]
        names[1].unlink(missing_ok=True)
        sync_directory(self.index)
        for scratch, name in zip(written, names, strict=True):
            put_in_place(scratch, name)

    def _tidy(self, parts: Sequence[StoredPart]) -> None:
        """Removes what only earlier attempts and older models need."""
        for path in self.index.glob("part-*.bin"):
            if str(path) not in parts:
                path.unlink()
        (self.index / JOURNAL_NAME).unlink(missing_ok=True)

    def _stored(self, parts: Sequence[StoredPart], checksums: Sequence[int], embedding: StoredEmbedding) -> StoredModel:
        return StoredModel(
            version=VERSION,
            readers=READERS,
            name=self.name,
            parts=tuple(parts),
            part_bytes=self.layout.part_bytes,
            shapes=self.manifest.shapes,
            types=self.manifest.types,
            bytes_by_type=self.manifest.bytes_by_type,
            segments=tuple(stored_segment(s, c) for s, c in zip(self.layout.segments, checksums, strict=True)),
            embedding=embedding,
            sources=tuple(StoredSource(path=os.path.abspath(file.path), size=file.size, mtime_ns=file.mtime_ns,
                                       inode=file.inode, sample=file.sample or "") for file in self.files),
        )

    def _stored_embedding(self, checksum: str) -> StoredEmbedding:
        table = self.manifest.embedding
        return StoredEmbedding(type=table.type.name, columns=table.columns, rows=table.rows,
                               offset=self.layout.embedding_offset, checksum=checksum)

    def _translated(self, error: OSError) -> NvstreamError:
        where = ", ".join(target.where for target in self.targets)
        again = "then run the same import again: it resumes where it stopped"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = ", ".join(mib(size) for size in self.layout.part_bytes)
            return StorageFull(f"no space for {self.name} in {where}: {os.strerror(error.errno)}, {needed} are needed",
                               f"free some space or name other directories, {again}")
        kind = StorageError if error.errno in PASSING else StorageRefused
        return kind(f"importing {self.name} into {where} failed: {error}", f"mend the cause, {again}")
