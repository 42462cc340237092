"""Where do the relay's own sockets lie, and who clears away what a killed daemon left there?

They lie in a directory that is the daemon's alone. The daemon holds a lock on it for as long as it lives. A directory
on which nobody holds a lock belonged to a daemon that has ended, however it ended, and is cleared away.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from nvstreamd.api.peer import LONGEST_NAME
from nvstreamd.places import check_length

log = logging.getLogger(__name__)

PREFIX = "nvstreamd-relay-"


def private_directory(stack: ExitStack) -> Path:
    """A directory of this daemon's, empty; `stack` removes it. Others' that were left behind go as well.

    Raises ConfigError where the path would be too long for a socket.
    """
    parent = Path(tempfile.gettempdir())
    _clear(parent)
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Another daemon may have taken it for a forgotten one before it was locked.
        if _is_there(path, fd):
            break
        os.close(fd)
    stack.callback(os.close, fd)
    stack.callback(_remove, path, fd)
    check_length(path / ("x" * LONGEST_NAME), "set TMPDIR to a shorter directory")
    return path


def _clear(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            _clear_one(path)
        except OSError as error:
            # Somebody else's, or in use; at worst it stays.
            if error.errno != errno.EWOULDBLOCK:
                log.debug("%s stays: %s", path, error.strerror)


def _clear_one(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(path, fd):
            _remove(path, fd)
            log.info("%s, of a daemon that was killed, is removed", path)
    finally:
        os.close(fd)


def _is_there(path: Path, fd: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _remove(path: Path, fd: int) -> None:
    """Removes sockets and their directory. Anything else was put there by nobody of ours: then the directory stays."""
    with suppress(OSError):
        for name in os.listdir(fd):
            if stat.S_ISSOCK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)
        path.rmdir()
