"""Where do an import's parts go: into files of directories, or into stretches of drives?

The importer knows only `Target`. Each of its verbs raises OSError, or an NvstreamError that names directory or drive.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from nvdma.arena import Arena
from nvdma.backends.direct import open_direct
from nvdma.bandwidth import SourceRange, measure
from nvdma.errors import DmaError
from nvdma.select import probe
from nvdma.types import Source
from nvstreamd.errors import StorageError, StorageFull
from nvstreamd.sizes import mib
from nvstreamd.weights.packed.durable import Part, open_plain, sync_directory, write
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import ALIGNMENT, align_up
from nvstreamd.weights.packed.store import SUFFIX
from nvstreamd.weights.packed.stored import StoredDrive, StoredProbe, probe_stretches
from nvstreamd.weights.packed.superblock import DATA_BEGIN
from nvstreamd.weights.packed.volume import Lengths, Volume, format_volume, read_volume

MIB = 1 << 20
BLOCK = 1 << 20
DEPTH = 16
MEASURE_SECONDS = 0.5
MEASURE_BYTES = 256 << 20


class Target(Protocol):
    """One place that takes one part of a model. `replaces`: it is written over what an older model has there."""

    where: str
    replaces: bool

    def open(self, stack: ExitStack) -> None:
        """Gets ready; an older model of the name stays whole."""

    def identity(self) -> object:
        """The facts that a later attempt must find again to go on here; they go into JSON."""

    def check_space(self, model: str, lengths: Lengths, needed: Counter[int]) -> None:
        """Raises StorageFull, before anything is written. `needed` adds up bytes by file system."""

    def open_part(self, model: str, lengths: Lengths, stack: ExitStack) -> Part:
        """The part of import `model`, its space taken."""

    def longest(self, size: int) -> str | StoredDrive:
        """A part of `size` bytes as manifest.json names it when that takes the most room."""

    def sync(self, part: Part) -> None:
        """Returns when the part is on the disk, wherever it can be looked for."""

    def stored(self, model: str, part: Part) -> str | StoredDrive:
        """The part as manifest.json names it; only after `sync`."""

    def keep_copies(self, model: str, header: bytes, manifest: bytes) -> None:
        """Writes header and manifest beside the part, where there is no directory of the store."""

    def settle(self, model: str) -> None:
        """Import `model` has its manifest: finishes it, if an interruption kept that from happening."""

    def finish(self, model: str) -> None:
        """The manifest is in its place: gives back what older models of the name have here."""


class DirectoryTarget:
    """NAME.nvs/part-NUMBER.bin in a directory."""

    replaces = True

    def __init__(self, name: str, number: int, directory: Path) -> None:
        self.name = name
        self.home = Path(os.path.abspath(directory / f"{name}{SUFFIX}"))
        self.path = self.home / f"part-{number}.bin"
        self.where = str(self.home)

    def open(self, stack: ExitStack) -> None:
        """Makes the directory NAME.nvs unless it is there. Raises OSError."""
        self.home.mkdir(parents=True, exist_ok=True)

    def identity(self) -> object:
        """The directory's absolute path."""
        return str(self.home)

    def check_space(self, model: str, lengths: Lengths, needed: Counter[int]) -> None:
        """Adds the part's missing bytes to its file system's in `needed`. Raises StorageFull when fewer are free."""
        device, space = self.home.stat().st_dev, os.statvfs(self.home)
        there = self.path.lstat().st_blocks * 512 if self.path.exists() else 0
        needed[device] += lengths.part - min(lengths.part, there)
        free = space.f_bavail * space.f_frsize
        if needed[device] > free:
            raise StorageFull(
                f"{self.home}: {mib(needed[device])} more are needed for {self.name}, {free // MIB}MiB are free",
                "free some space or name other directories, then run the same import again",
            )

    def open_part(self, model: str, lengths: Lengths, stack: ExitStack) -> Part:
        """The part's file, made or kept, of exactly the part's length; `stack` closes it. Raises OSError."""
        fd = open_plain(self.path)
        stack.callback(os.close, fd)
        if lengths.part:
            os.posix_fallocate(fd, 0, lengths.part)
        os.ftruncate(fd, lengths.part)
        return Part(fd, str(self.path), 0, lengths.part)

    def longest(self, size: int) -> str | StoredDrive:
        """The file's absolute path, whatever the size."""
        return str(self.path)

    def sync(self, part: Part) -> None:
        """Returns when the file, its directory and the one above are on the disk. Raises OSError."""
        os.fsync(part.fd)
        sync_directory(self.home)
        sync_directory(self.home.parent)

    def stored(self, model: str, part: Part) -> str | StoredDrive:
        """The file's absolute path."""
        return str(self.path)

    def keep_copies(self, model: str, header: bytes, manifest: bytes) -> None:
        """There are none: directories are found through the store."""

    def settle(self, model: str) -> None:
        """Nothing can be left: an older model's part is this one's."""

    def finish(self, model: str) -> None:
        """There is nothing: the part was written over the older one."""


class DriveTarget:
    """A stretch of a whole drive. `file` is its block device, opened for reading and writing."""

    replaces = False

    def __init__(self, name: str, serial: str, nsid: int, file: OpenFile) -> None:
        self.name = name
        self.serial = serial
        self.nsid = nsid
        self.file = file
        self.where = file.path
        self._volume: Volume | None = None

    @property
    def volume(self) -> Volume:
        """The volume that the drive carries; only after `open`."""
        assert self._volume is not None, "open comes first"
        return self._volume

    def open(self, stack: ExitStack) -> None:
        """Reads the drive's volume. A drive that carries nothing becomes one: whoever opened it has decided that."""
        self._volume = read_volume(self.file, self.serial) or format_volume(self.file, self.serial)

    def identity(self) -> object:
        """The drive's serial number, its namespace and its volume's UUID."""
        return [self.serial, self.nsid, self.volume.uuid]

    def check_space(self, model: str, lengths: Lengths, needed: Counter[int]) -> None:
        """Looks for a place on the drive. Raises StorageFull; `needed` is left alone: no file system takes part."""
        self.volume.place(self.name, model, lengths)

    def open_part(self, model: str, lengths: Lengths, stack: ExitStack) -> Part:
        """Reserves the model's stretch; the part begins at its offset. Raises StorageFull and OSError."""
        entry = self.volume.reserve(self.name, model, lengths)
        return Part(self.file.fd, self.file.path, entry.part.offset, lengths.part)

    def longest(self, size: int) -> str | StoredDrive:
        """The part at the drive's end, with all of its probes: no other place takes longer numbers."""
        probes = tuple(StoredProbe(offset=offset, length=length, digest="0" * 32)
                       for offset, length in probe_stretches(size))
        return self._part("0" * 32, self.file.size // ALIGNMENT * ALIGNMENT, size, probes)

    def sync(self, part: Part) -> None:
        """Returns when the drive has written what it was given. Raises OSError."""
        os.fsync(part.fd)

    def stored(self, model: str, part: Part) -> str | StoredDrive:
        """The stretch, with digests of its first and last MiB as read past the page cache. Raises StorageError."""
        return self._part(model, part.base, part.size, probes_of(self.file, part))

    def _part(self, model: str, offset: int, size: int, probes: tuple[StoredProbe, ...]) -> StoredDrive:
        return StoredDrive(serial=self.serial, nsid=self.nsid, volume=self.volume.uuid, model=model, offset=offset,
                           size=size, probes=probes)

    def keep_copies(self, model: str, header: bytes, manifest: bytes) -> None:
        """Writes both to their places beside the part, padded. Raises StorageError when one outgrew its place."""
        entry = self.volume.find(model)
        assert entry is not None, "open_part has reserved it"
        if len(header) > entry.header.length or len(manifest) > entry.manifest.length:
            raise StorageError(f"{self.where}: header or manifest of {self.name} outgrew their place", "report this")
        # Both end in what a reader of GGUF or JSON does not mind.
        write(self.file.fd, memoryview(header.ljust(entry.header.length, b"\0")), entry.header.offset)
        write(self.file.fd, memoryview(manifest.ljust(entry.manifest.length)), entry.manifest.offset)
        os.fsync(self.file.fd)

    def settle(self, model: str) -> None:
        """Finishes import `model` in the drive's directory if it is unfinished there. Raises OSError."""
        entry = self.volume.find(model)
        if entry is not None and entry.unfinished:
            self.volume.finish(model)

    def finish(self, model: str) -> None:
        """Says on the drive that import `model` is whole and replaces its name's others. Raises BadVolume, OSError."""
        self.volume.finish(model)


def in_directories(name: str, directories: Sequence[Path]) -> list[Target]:
    """A target in each directory."""
    return [DirectoryTarget(name, number, directory) for number, directory in enumerate(directories)]


def probes_of(file: OpenFile, part: Part) -> tuple[StoredProbe, ...]:
    """The digests of the part's first and last MiB on the drive itself, past the page cache. Raises StorageError."""
    try:
        with ExitStack() as stack:
            fd, _ = open_direct(Source(file.fd, file.path, file.size), stack)
            return tuple(StoredProbe(offset=offset, length=length, digest=_digest(fd, part, offset, length))
                         for offset, length in probe_stretches(part.size))
    except DmaError as error:
        raise StorageError(error.what, error.hint) from error


def _digest(fd: int, part: Part, offset: int, length: int) -> str:
    # Anonymous memory begins on a page, as O_DIRECT wants it.
    with mmap.mmap(-1, length) as buffer:
        got = os.preadv(fd, [buffer], part.base + offset)
        if got != length:
            raise StorageError(f"{part.path}: {got} of {length} bytes at offset {part.base + offset}",
                               "look at the drive's health and at dmesg")
        return blake2b(buffer, digest_size=16).hexdigest()


def rates_of(targets: Sequence[Target]) -> list[int]:
    """How much each target takes in relation to the others: for a drive, the MiB a second that it was read with.

    A directory counts as much as any other, and a drive alone needs no measuring. Raises StorageError.
    """
    if len(targets) == 1 or not all(isinstance(target, DriveTarget) for target in targets):
        return [1] * len(targets)
    return [read_rate(target.file) for target in targets if isinstance(target, DriveTarget)]


def read_rate(file: OpenFile) -> int:
    """MiB a second, at least 1, from a drive's data: blocks of 1 MiB, several in flight. Raises StorageError."""
    source = Source(file.fd, file.path, file.size)
    try:
        with ExitStack() as stack:
            arena = stack.enter_context(Arena(BLOCK * DEPTH))
            backend = probe(("uring", "pread"), [source], arena, DEPTH).backend
            stack.callback(backend.close)
            found = measure(backend, [source], arena, BLOCK, DEPTH, seconds=MEASURE_SECONDS, limit=MEASURE_BYTES,
                            ranges=[SourceRange(0, DATA_BEGIN, file.size // BLOCK * BLOCK - DATA_BEGIN)])
    except DmaError as error:
        raise StorageError(error.what, error.hint) from error
    return max(1, round(found.bytes_per_second / MIB))


def lengths_of(part: int, header: int, manifest: int) -> Lengths:
    """Bytes of a part, and of what a drive carries beside it, in whole blocks."""
    return Lengths(part, align_up(header), align_up(manifest))
