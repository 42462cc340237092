"""Whose word is a path? Opens one step by step, so that no link on the way leads where only its owner wants.

Directories of models have others' directories in them, and whoever rules a directory may put a link in its place
between two looks at it. So every link of a path is looked at, not the last alone.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# More than anybody lays out on purpose.
MOST_LINKS = 8


class Led(Exception):
    """A link on the way is `owner`'s, a uid that is neither root's nor ours."""

    def __init__(self, owner: int) -> None:
        super().__init__(owner)
        self.owner = owner


def is_trusted(uid: int) -> bool:
    """True when its links lead where the administrator, or whose daemon it is, wants."""
    return uid in (0, os.geteuid())


def open_path(path: Path, flags: int) -> int:
    """A descriptor of what is at the path. Raises OSError as open(2), or Led."""
    walk = _Walk(path)
    try:
        return walk.open(flags)
    finally:
        os.close(walk.fd)


def at(fd: int, name: str, flags: int) -> int:
    """A descriptor of an entry of the directory `fd`. Raises OSError, of a link ELOOP or ENOTDIR."""
    found = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    # With O_PATH alone the link itself is opened.
    if stat.S_ISLNK(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return found


class _Walk:
    """How far a path has been gone: `fd` is the directory reached, `_left` the names to go, the next one last."""

    def __init__(self, path: Path) -> None:
        self._links = 0
        self._left = list(reversed(path.absolute().parts[1:]))
        self.fd = _root()

    def open(self, flags: int) -> int:
        while self._left:
            name = self._left.pop()
            try:
                if not self._left:
                    return at(self.fd, name, flags)
                self._go(at(self.fd, name, os.O_PATH | os.O_DIRECTORY))
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                self._follow(name, error)
        return at(self.fd, ".", flags)

    def _follow(self, name: str, refused: OSError) -> None:
        """Whose the link is and what it says is of the same link. Raises `refused` when there is none."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            found = os.fstat(fd)
            if not stat.S_ISLNK(found.st_mode):
                raise refused
            if not is_trusted(found.st_uid):
                raise Led(found.st_uid)
            target = os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)
        self._links += 1
        if self._links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            self._go(_root())
        self._left += [each for each in reversed(target.split("/")) if each]

    def _go(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
