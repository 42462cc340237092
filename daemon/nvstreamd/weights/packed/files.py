"""Which open files make up a model, and has one of them changed since it was opened?

The daemon may be root, and a directory of models may be somebody else's to write. A file in it is opened as it is:
whoever put it there offers it. What leads elsewhere, a link or a path that a manifest names, is followed with the
rights of whose link or manifest it is: else everybody could have root's files opened, or learn that they exist.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from nvstreamd.errors import BadModelFile, ModelChanged, NotFound, NvstreamError, StorageError
from nvstreamd.weights.packed.follow import Led, at, open_path

# The name that llama.cpp's gguf-split gives its parts: NAME-00001-of-00003.gguf.
SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>[0-9]{5})-of-(?P<parts>[0-9]{5})\.(?P<ending>(?i:gguf))\Z")
# SCM_MAX_RIGHTS of the kernel: as many descriptors travel with one message.
MOST_PARTS = 253
# Directories with this ending are packed models; nothing in them is ever a link.
PACKED_SUFFIX = ".nvs"
PAGE = mmap.PAGESIZE
SAMPLE_ENDS, SAMPLE_PAGES = 1 << 16, 64
READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(slots=True)
class Noted:
    """The facts of an open file's bytes: a sample, and the last modification time that did not change it."""

    sample: str | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor with what fstat said when it was opened. `path` serves messages only.

    `size` is a file's length in bytes, or a block device's capacity.
    """

    fd: int
    path: str
    size: int
    mtime_ns: int
    inode: int
    noted: Noted = field(default_factory=Noted, kw_only=True, compare=False)

    def check_unchanged(self) -> None:
        """Raises ModelChanged when its bytes are not what they were.

        They are looked at only after a new modification time, which a mere touch gives too: see `sample_of`.
        """
        now = os.fstat(self.fd)
        if now.st_size == self.size and now.st_mtime_ns in (self.mtime_ns, self.noted.mtime_ns):
            return
        if now.st_size != self.size or self.sample is None or sample_of(self) != self.sample:
            raise self._changed(now.st_size)
        self.noted.mtime_ns = now.st_mtime_ns

    def check_untouched(self) -> None:
        """Raises ModelChanged when size or modification time are not what they were."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self._changed(now.st_size)

    @property
    def sample(self) -> str | None:
        """The answer of `sample_of` when it was opened; None for a device, or what could not be read."""
        return self.noted.sample

    def _changed(self, size: int) -> ModelChanged:
        return ModelChanged(f"{self.path} changed while the model was in use ({self.size} bytes then, {size} now)",
                            "unload the model, restore or re-import the file, load it again")

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes at `offset`, fewer at the file's end. Raises StorageError naming file and offset.

        The transfer is page-aligned: a backend may have had to set O_DIRECT on this very descriptor, and then the
        kernel refuses any other.
        """
        begin = offset // PAGE * PAGE
        skip = offset - begin
        done = 0
        with mmap.mmap(-1, -(-(skip + count) // PAGE) * PAGE) as buffer, memoryview(buffer) as view:
            while done < skip + count:
                with view[done:] as rest:
                    got = self._preadv(rest, begin + done)
                done += got
                # Only at its end does a file give a transfer that is no multiple of a page.
                if not got or done % PAGE:
                    break
            return bytes(view[skip : min(done, skip + count)])

    def _preadv(self, view: memoryview, offset: int) -> int:
        try:
            return os.preadv(self.fd, [view], offset)
        except OSError as error:
            raise StorageError(f"{self.path}: reading at offset {offset} failed: {error.strerror}",
                               "look at the drive's health and at dmesg") from error


def adopt(fd: int, path: str) -> OpenFile:
    """Facts about a descriptor that is already open."""
    facts = os.fstat(fd)
    # fstat says 0 of a block device. Every read here names its offset: nobody misses the position.
    file = OpenFile(fd, path, os.lseek(fd, 0, os.SEEK_END), facts.st_mtime_ns, facts.st_ino)
    if stat.S_ISREG(facts.st_mode):
        with suppress(StorageError):
            file.noted.sample = sample_of(file)
    return file


def sample_of(file: OpenFile) -> str:
    """A digest of a file's first and last 64 KiB and of 64 pages in between. Raises StorageError.

    Whoever writes a model anew cannot miss all of these; it says nothing of a change that somebody means to hide.
    """
    digest = blake2b(digest_size=16)
    digest.update(file.read(SAMPLE_ENDS, 0))
    for number in range(1, SAMPLE_PAGES + 1):
        digest.update(file.read(PAGE, file.size * number // (SAMPLE_PAGES + 1) // PAGE * PAGE))
    digest.update(file.read(SAMPLE_ENDS, max(0, file.size - SAMPLE_ENDS)))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A path that is the word of `owner`, a uid that is neither root's nor ours."""

    path: Path
    owner: int


# Opens a path with the rights of a uid; returns a descriptor of a regular file. Raises NvstreamError.
OpenAs = Callable[[int, Path], int]


def follow_nobody(owner: int, path: Path) -> int:
    """Refuses to open any path for another uid. Raises BadModelFile."""
    raise BadModelFile(f"{_shown(path)} is where uid {owner} wants to lead the daemon",
                       "put the file itself there, or have root make the link")


def open_regular(path: Path, open_as: OpenAs = follow_nobody) -> int:
    """A descriptor of a regular file; never waits for a FIFO's writer, never touches a device.

    In a packed model there are no links. Raises NotFound or BadModelFile naming the path, or what `open_as` raises.
    """
    try:
        fd = _open_in_packed(path) if path.parent.suffix == PACKED_SUFFIX else open_path(path, READING)
    except Led as led:
        return open_as(led.owner, path)
    except (OSError, ValueError) as error:
        raise refusal(path, error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise not_regular(path)
    # Without this io_uring would answer EAGAIN where a read has to wait for the drive.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    return fd


def _open_in_packed(path: Path) -> int:
    directory = open_path(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return at(directory, path.name, READING)
    finally:
        os.close(directory)


def not_regular(path: Path) -> BadModelFile:
    """The error for a directory, a device, a FIFO."""
    return BadModelFile(f"{_shown(path)} is not a regular file", "name a GGUF file, or a packed NAME.nvs directory")


def refusal(path: Path, error: OSError | ValueError, reader: str = "the daemon's user") -> NvstreamError:
    """Why `reader` cannot open it."""
    shown = _shown(path)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, None):
        return NotFound(f"{shown} does not exist", "check the path")
    hints = {
        errno.ELOOP: "a packed model has no symbolic links: import it again",
        errno.EMFILE: "raise the daemon's limit of open files (LimitNOFILE=)",
        errno.ENFILE: "raise fs.file-max",
        errno.ENXIO: "name a GGUF file, or a packed NAME.nvs directory",
    }
    return BadModelFile(f"{shown}: {os.strerror(number or 0)}",
                        hints.get(number or 0, f"make it readable for {reader}"))


def _shown(path: Path) -> str:
    """The path as a message can carry it: short enough for a gRPC status, always UTF-8."""
    return str(path)[:1000].replace("\0", "\\0").encode(errors="backslashreplace").decode()


def open_all(paths: Sequence[Path | Elsewhere], stack: ExitStack, open_as: OpenAs = follow_nobody) -> list[OpenFile]:
    """Opens each path read-only; `stack` closes them. Raises NotFound or BadModelFile naming the path."""
    files = []
    for each in paths:
        path = each.path if isinstance(each, Elsewhere) else each
        fd = open_as(each.owner, path) if isinstance(each, Elsewhere) else open_regular(path, open_as)
        stack.callback(os.close, fd)
        files.append(adopt(fd, str(path)))
    return files


def parts_of(path: Path) -> list[Path]:
    """All files of the model whose first (or only) file is `path`, in order.

    Raises BadModelFile for a split name that contradicts itself or is not the first part.
    """
    split = SPLIT_NAME.match(path.name)
    if split is None:
        return [path]
    part, parts = int(split["part"]), int(split["parts"])
    if part != 1 or not 1 <= parts <= MOST_PARTS:
        raise BadModelFile(f"{_shown(path)} is part {part} of {parts}",
                           f"name the first part, ...-00001-of-..., of at most {MOST_PARTS}")
    return [path.with_name(f"{split['stem']}-{n:05}-of-{parts:05}.{split['ending']}") for n in range(1, parts + 1)]
