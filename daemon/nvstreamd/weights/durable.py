"""How do bytes come to a disk so that an interruption never leaves what looks whole and is not?"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.manifest import Segment

COPY = 8 << 20


def journaled(path: Path, identity: str) -> dict[str, int]:
    """What the journal vouches for, up to the first line that an interruption left unreadable."""
    try:
        first, *lines = path.read_text(errors="replace").split("\n")[:-1]
    except (FileNotFoundError, ValueError):
        return {}
    known: dict[str, int] = {}
    try:
        for line in lines if first == identity else ():
            name, checksum = json.loads(line)
            known[str(name)] = int(checksum, 16)
    except (ValueError, TypeError, RecursionError):
        pass
    return known


def open_plain(path: Path) -> int:
    """A part to write. Raises OSError for a link or what is no regular file: the engine may run as root."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return fd


def gather(segment: Segment, parts: Sequence[int]) -> bytearray:
    """A written segment, read back."""
    content = bytearray(segment.nbytes)
    view = memoryview(content)
    for extent in segment.extents:
        for begin, chunk in chunks(view[extent.target : extent.target + extent.length]):
            os.preadv(parts[extent.file], [chunk], extent.offset + begin)
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
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.unlink(missing_ok=True)
    with scratch.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    scratch.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
