"""Is the directory of the public socket ours, so that nobody answers in the daemon's place or takes its socket away?"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from nvstreamd.config import temporary_directory
from nvstreamd.errors import ConfigError

PRIVATE, PUBLIC = 0o700, 0o755
# sockaddr_un.sun_path, less the zero at its end: unix(7).
PATH_BYTES = 107


def make_room(directory: Path, temporary: Path | None = None) -> None:
    """Makes the directory of a socket, whatever the umask is. Raises OSError, or ConfigError when others rule it.

    `temporary` stands in for a user's runtime directory (config.temporary_directory). In /tmp anybody may have made it
    before us, and would be asked in our place: what is there must be ours.
    """
    own = temporary or temporary_directory()
    if own in directory.parents:
        _make(own, PRIVATE)
        _check_alone(own)
    for missing in [each for each in (directory, *directory.parents) if not each.exists()][::-1]:
        _make(missing, PUBLIC)
    _check_kept(directory)


def check_length(socket: Path, hint: str) -> None:
    """Raises ConfigError for a path that no socket can have."""
    size = len(os.fsencode(socket))
    if size > PATH_BYTES:
        raise ConfigError(f"{socket} has {size} bytes, the path of a socket at most {PATH_BYTES}", hint)


def remove_own(socket: Path, fd: int) -> None:
    """Removes the socket that `fd` (O_PATH) was opened as, unless another daemon's is in its place by now.

    While it is open no other file can have its inode.
    """
    with suppress(FileNotFoundError):
        if os.path.samestat(socket.lstat(), os.fstat(fd)):
            socket.unlink()
    os.close(fd)


def _make(directory: Path, mode: int) -> None:
    try:
        directory.mkdir(mode)
    except FileExistsError:
        return
    # mkdir(2) leaves out what the umask says, which may be everybody else.
    directory.chmod(mode)


def _check_alone(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(f"{directory} is not a directory that is yours alone: somebody else may have made it",
                          "remove it, set XDG_RUNTIME_DIR, or name a place with --socket")


def _check_kept(directory: Path) -> None:
    found = directory.stat()
    replaceable = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if replaceable or found.st_uid not in (0, os.getuid()):
        raise ConfigError(f"{directory}: others can put a socket of theirs in place of the daemon's",
                          "it must be root's or yours, and nobody else's to write: `chmod o-w`, or name another place")
