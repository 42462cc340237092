"""How does root's daemon open a file with the rights of somebody else, and with no others? In a child that is him.

A thread could change its own rights as well. But a file system in user space can keep an open(2) from ever returning,
and a thread that hangs there cannot be ended; a child can. The user whom the child has become may trace and change it.
So its answers are trusted no more than that user, and it can pass on no file that the user could not open himself.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

from nvstreamd.errors import BadModelFile, PermissionDenied, QuotaExceeded, StorageError
from nvstreamd.weights.packed.files import MOST_PARTS, OpenFile, adopt, not_regular, refusal

OPEN_SECONDS = 10.0
# Each takes a thread of the daemon's for as long as its user lets it wait.
MOST_AT_ONCE = 8
LONGEST_ANSWER = 16
FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
# The group of a user who has no account.
NO_GROUP = 65534
# Paths come on stdin, with zeros between them. An answer is one message: errno of the first that was not opened, or 0,
# and the descriptors of those before it.
OPENER = """
import fcntl, os, socket, sys
channel, descriptors, error = socket.socket(fileno=int(sys.argv[1])), [], 0
for path in sys.stdin.buffer.read().split(b"\\0"):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as found:
        error = found.errno
        break
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    descriptors.append(fd)
socket.send_fds(channel, [str(error).encode()], descriptors)
"""
_places = BoundedSemaphore(MOST_AT_ONCE)


@dataclass(frozen=True, slots=True)
class Rights:
    """Whom the kernel takes the opener for."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def rights_of(uid: int, gid: int | None = None) -> Rights:
    """The rights that a user has now; `gid` is the group of the process that asks, by default the account's."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        alone = NO_GROUP if gid is None else gid
        return Rights(uid, alone, (alone,))
    group = account.pw_gid if gid is None else gid
    return Rights(uid, group, tuple(os.getgrouplist(account.pw_name, group)))


def rights_of_caller(uid: int, gid: int) -> Rights | None:
    """None for root and the daemon's own user, who have the daemon's. Raises PermissionDenied if it has no others."""
    if uid in (0, os.getuid()):
        return None
    if os.getuid():
        raise PermissionDenied(f"this daemon is not root's: it cannot open files with the rights of uid {uid}",
                               f"have uid {os.getuid()}, whose daemon it is, do that")
    return rights_of(uid, gid)


def open_as_uid(uid: int, path: Path) -> int:
    """A descriptor of the regular file at `path`, opened with the rights of `uid`; only root's daemon can."""
    if os.getuid():
        raise BadModelFile(f"{path} is where uid {uid} wants to lead the daemon of uid {os.getuid()}",
                           "put the file itself there, or make the link yourself")
    with ExitStack() as stack:
        return os.dup(open_as(rights_of(uid), [path], stack)[0].fd)


def open_as(rights: Rights, paths: Sequence[Path], stack: ExitStack) -> list[OpenFile]:
    """Opens regular files read-only, as that user would; `stack` closes them.

    Raises NotFound or BadModelFile naming the path, QuotaExceeded, or StorageError when that takes too long.
    """
    if not 1 <= len(paths) <= MOST_PARTS or any("\0" in str(path) for path in paths):
        raise refusal(paths[0], ValueError(), f"uid {rights.uid}")
    if not _places.acquire(blocking=False):
        raise QuotaExceeded(f"{MOST_AT_ONCE} files are being opened for other users already", "try again",
                            field="opening")
    try:
        error, descriptors = _ask(rights, paths)
    finally:
        _places.release()
    for fd in descriptors:
        stack.callback(os.close, fd)
    if error and len(descriptors) < len(paths):
        raise refusal(paths[len(descriptors)], OSError(error, os.strerror(error)), f"uid {rights.uid}")
    if len(descriptors) != len(paths):
        raise StorageError(f"{paths[0]} was not opened as uid {rights.uid}", "try again")
    for path, fd in zip(paths, descriptors, strict=True):
        _check(path, fd)
    return [adopt(fd, str(path)) for path, fd in zip(paths, descriptors, strict=True)]


def _ask(rights: Rights, paths: Sequence[Path]) -> tuple[int, list[int]]:
    """The errno that stopped it, or 0, and descriptors of what was opened before. Raises StorageError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = _start(rights, theirs)
        try:
            child.communicate(b"\0".join(os.fsencode(path) for path in paths), timeout=OPEN_SECONDS)
        except subprocess.TimeoutExpired:
            raise StorageError(f"{paths[0]} could not be opened as uid {rights.uid} within {OPEN_SECONDS:g} s",
                               "look at the file system that it is on") from None
        finally:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(OPEN_SECONDS)
        with suppress(BlockingIOError):
            message, descriptors, _, _ = socket.recv_fds(ours, LONGEST_ANSWER, MOST_PARTS, FLAGS)
            return (int(message) if re.fullmatch(rb"[0-9]{1,4}", message) else 0), descriptors
    return 0, []


def _start(rights: Rights, channel: socket.socket) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", OPENER, str(channel.fileno())], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[channel.fileno()], env={}, cwd="/",
            start_new_session=True, user=rights.uid, group=rights.gid, extra_groups=rights.groups)
    except OSError as error:
        raise StorageError(f"no process could be started as uid {rights.uid}: {error}",
                           "it needs the right to execute the daemon's Python") from error


def _check(path: Path, fd: int) -> None:
    """Asks nothing of a file system whose user could let the daemon wait. Raises BadModelFile."""
    if not is_kernels(fd):
        raise BadModelFile(f"{path} is on a file system in user space, which might never answer",
                           "copy it to another, or have root load it")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise not_regular(path)


def is_kernels(fd: int) -> bool:
    """True when a file is on a mount of ours that no process serves: proc(5), fdinfo and mountinfo."""
    found = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if found is not None and mount.split()[0] == found[1]:
            return not kind.startswith("fuse")
    return False
