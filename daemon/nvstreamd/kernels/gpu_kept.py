"""Where does what was compiled for a card stay? In a folder that nobody else may write, each file with its hash.

Engines share the folder without a lock: a file is put in its place as a whole, and may be gone at any moment. The
folder is looked at, and its files reached, through one descriptor: nobody can lay another in its place meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

log = logging.getLogger(__name__)

PRIVATE = 0o700
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A card takes 14 at most; each release, of ours and of NVRTC, brings others.
MOST_FILES = 256
HASH_BYTES = 32
# Far more than a unit is.
MOST_BYTES = 64 << 20


class Kept:
    """The files of a folder, by name. What is wrong with the folder is logged once; it is not used from then on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_used = True

    def read(self, name: str) -> bytes | None:
        """What was kept under the name, if it is what was written."""
        with self._opened() as folder:
            content = None if folder is None else self._content(folder, name)
        if content is None:
            return None
        kept, image = content[:HASH_BYTES], content[HASH_BYTES:]
        if hashlib.sha256(image).digest() != kept:
            log.warning("%s is damaged: it is compiled again", self.folder / name)
            return None
        return image

    def write(self, name: str, image: bytes) -> None:
        """Keeps it, in the place of what was not used for longest."""
        with self._opened() as folder:
            if folder is None:
                return
            try:
                _put(folder, name, hashlib.sha256(image).digest() + image)
                _tidy(folder)
            except OSError as error:
                log.warning("%s is not kept, it will be compiled again: %s", self.folder / name, error.strerror)

    def _content(self, folder: int, name: str) -> bytes | None:
        try:
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
                if not _is_ours(os.fstat(file.fileno())):
                    log.warning("%s is none of our files, or others may write it: it is compiled again",
                                self.folder / name)
                    return None
                with suppress(OSError):  # a disk may be read alone
                    os.utime(file.fileno())
                return file.read(MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read, it is compiled again: %s", self.folder / name, error.strerror)
            return None

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        """A descriptor of the folder while it is ours alone."""
        try:
            folder = self._open() if self.is_used else None
        except OSError as error:
            self._give_up(error)
            folder = None
        try:
            yield folder
        finally:
            if folder is not None:
                os.close(folder)

    def _open(self) -> int | None:
        self.folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _is_ours(os.fstat(folder)):
            return folder
        os.close(folder)
        self._give_up("it is somebody else's, or others may write it")
        return None

    def _give_up(self, why: object) -> None:
        if self.is_used:
            log.warning("compiled kernels are not kept in %s, every engine compiles them again: %s", self.folder, why)
        self.is_used = False


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_MAY_WRITE


def _put(folder: int, name: str, content: bytes) -> None:
    """Puts a file in its place as a whole."""
    partial = f"partial-{token_hex(8)}"
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def _tidy(folder: int) -> None:
    """Removes what was not used for longest. Another engine may do the same at this moment."""
    found = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            found.append((os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns, name))
    for _, name in sorted(found, reverse=True)[MOST_FILES:]:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
