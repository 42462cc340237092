"""How do bytes come to a disk so that an interruption never leaves what looks whole and is not?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import Segment

COPY = 8 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes of a descriptor from byte `base` on: a file from its beginning, or a stretch of a drive."""

    fd: int
    path: str
    base: int
    size: int


def open_plain(path: Path) -> int:
    """A part to write. Raises OSError for a link or what is no regular file: the engine may run as root."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return fd


def gather(segment: Segment, parts: Sequence[Part]) -> bytearray:
    """A written segment, read back."""
    content = bytearray(segment.nbytes)
    view = memoryview(content)
    for extent in segment.extents:
        part = parts[extent.file]
        for begin, chunk in chunks(view[extent.target : extent.target + extent.length]):
            os.preadv(part.fd, [chunk], part.base + extent.offset + begin)
    return content


def chunks(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    for begin in range(0, len(view), COPY):
        yield begin, view[begin : begin + COPY]


def read_into(file: OpenFile, offset: int, view: memoryview) -> None:
    for begin, chunk in chunks(view):
        got = os.preadv(file.fd, [chunk], offset + begin)
        if got != len(chunk):
            file.check_unchanged()
            raise OSError(errno.EIO, f"{file.path}: {got} of {len(chunk)} bytes at offset {offset + begin}")


def write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view[:COPY], offset)
        view, offset = view[written:], offset + written


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    put_in_place(write_beside(path, content), path)


def write_beside(path: Path, content: bytes) -> Path:
    """Writes what will be the file `path`, durable but under another name, which is returned."""
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.unlink(missing_ok=True)
    with scratch.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    return scratch


def put_in_place(scratch: Path, path: Path) -> None:
    """Gives what `write_beside` wrote its name."""
    scratch.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
