"""Which open files make up a model, and has one of them changed since it was opened?"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import BadModelFile, ModelChanged, NotFound

# The name that llama.cpp's gguf-split gives its parts: NAME-00001-of-00003.gguf.
SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
# SCM_MAX_RIGHTS of the kernel: as many descriptors travel with one message.
MOST_PARTS = 253


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An O_RDONLY descriptor with what fstat said when it was opened. `path` serves messages only."""

    fd: int
    path: str
    size: int
    mtime_ns: int
    inode: int

    def check_unchanged(self) -> None:
        """Raises ModelChanged when size or modification time are not what they were."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ModelChanged(
                f"{self.path} changed while the model was in use ({self.size} bytes then, {now.st_size} now)",
                "unload the model, restore or re-import the file, load it again",
            )


def adopt(fd: int, path: str) -> OpenFile:
    """Facts about a descriptor that is already open."""
    stat = os.fstat(fd)
    return OpenFile(fd, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def open_all(paths: list[Path], stack: ExitStack) -> list[OpenFile]:
    """Opens each path read-only; `stack` closes them. Raises NotFound or BadModelFile naming the path."""
    files = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist", "check the path") from None
        except OSError as error:
            raise BadModelFile(f"{path}: {error.strerror}", "make it readable for the daemon's user") from None
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
        raise BadModelFile(f"{path} is part {part} of {parts}", "name the first part, ...-00001-of-...")
    return [path.with_name(f"{split['stem']}-{n:05}-of-{parts:05}.gguf") for n in range(1, parts + 1)]
