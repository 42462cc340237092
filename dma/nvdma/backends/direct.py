"""Can this file be read past the page cache, through which descriptor and at which alignment?

Sources: open(2) and its notes on O_DIRECT, statx(2) and linux/stat.h (STATX_DIOALIGN), proc_pid_fd(5).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import ExitStack

from nvdma.errors import BackendUnavailable
from nvdma.types import Source

AT_EMPTY_PATH = 0x1000
STATX_DIOALIGN = 0x2000
STATX_NBYTES = 256
DIO_ALIGN_AT = 0x98  # stx_dio_mem_align, stx_dio_offset_align
DEFAULT_ALIGNMENT = 4096
LEAST_ALIGNMENT = 512

_LIBC = ctypes.CDLL(None, use_errno=True)


def direct_alignment(source: Source) -> int:
    """Bytes to which offset, length and address of a direct read of ``source`` must be aligned.

    Raises BackendUnavailable when its file system says that it has no direct I/O for this file.
    """
    buffer = ctypes.create_string_buffer(STATX_NBYTES)
    if _LIBC.statx(source.fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, buffer):
        return DEFAULT_ALIGNMENT
    (mask,) = struct.unpack_from("=I", buffer, 0)
    if not mask & STATX_DIOALIGN:
        return DEFAULT_ALIGNMENT
    memory: int
    offset: int
    memory, offset = struct.unpack_from("=II", buffer, DIO_ALIGN_AT)
    if not offset:
        raise _refused(source, "its file system has no direct I/O for it (statx: stx_dio_offset_align is 0)")
    return max(LEAST_ALIGNMENT, memory, offset)


def open_direct(source: Source, stack: ExitStack) -> tuple[int, str | None]:
    """A descriptor of ``source`` with O_DIRECT, and a note when it is not a private one.

    ``stack`` gets what reverses it. Opens the file anew through /proc, so that the caller's descriptor stays
    as it is; without the permission for that sets the flag on the caller's own open file description.
    Raises BackendUnavailable when the file system refuses O_DIRECT.
    """
    try:
        fd = os.open(f"/proc/self/fd/{source.fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
            return _set_direct(source, stack, error)
        raise _refused(source, f"opening it with O_DIRECT failed: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd, None


def _set_direct(source: Source, stack: ExitStack, why: OSError) -> tuple[int, str]:
    flags = fcntl.fcntl(source.fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(source.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        raise _refused(source, f"setting O_DIRECT on it failed: {error.strerror}") from error
    stack.callback(fcntl.fcntl, source.fd, fcntl.F_SETFL, flags)
    return source.fd, (
        f"{source.path}: opening it anew with O_DIRECT was refused ({why.strerror}), so O_DIRECT is set on "
        "the descriptor that was handed over, for everybody who shares it; make the file readable for the "
        "engine's user to avoid this"
    )


def _refused(source: Source, reason: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{source.path}: {reason}", hint="move the file to ext4, XFS or Btrfs on a drive, or use 'pread'"
    )
