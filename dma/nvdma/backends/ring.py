"""How does one talk to io_uring(7) from Python without a C library?

Two mappings and three system calls, through ctypes. A filter of system calls does not see what a ring is asked to do,
and it could be asked to connect a socket or to open a file: so each ring is bound to reading files that it was given.

Why not PyPI `liburing` (2026.3.30, examined): its only wheel is compiled for its builder's CPU, so `Ring()`
dies of SIGILL (an AVX-512 store) on every CPU without AVX-512, most consumer ones among them; it never
releases the GIL (its library imports no PyEval_SaveThread), so a wait for a drive would stop the compute
threads; `io_uring_prep_read_fixed` takes a bytearray, no address, and says "coded but not tested"; it wants
Linux 6.14 where we want 5.15. Needed here is a small and stable part of the interface: IORING_OP_READ and
IORING_OP_READ_FIXED.

Memory ordering. The submission queue needs none: without IORING_SETUP_SQPOLL the kernel reads it only inside
io_uring_enter(2), on the thread that wrote it. Completions may be written by another CPU: the tail must be
loaded before the entries (acquire) and the entries before the head is stored (release). On x86 every aligned
32-bit load and store has that order already; elsewhere `_fence` takes and releases a lock twice: the first
release and the second acquire are atomic, and no load or store moves over the two. ctypes releases the GIL
in each call.

Sources: linux/io_uring.h, io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import threading
from collections.abc import Sequence
from contextlib import ExitStack

# One number on every architecture nvstreamd can run on (asm-generic/unistd.h).
NR_IO_URING_SETUP = 425
NR_IO_URING_ENTER = 426
NR_IO_URING_REGISTER = 427

IORING_OFF_SQ_RING = 0
IORING_OFF_SQES = 0x10000000
IORING_SETUP_R_DISABLED = 1 << 6
IORING_ENTER_GETEVENTS = 1 << 0
IORING_ENTER_EXT_ARG = 1 << 3
IORING_FEAT_SINGLE_MMAP = 1 << 0
IORING_FEAT_NODROP = 1 << 1
IORING_FEAT_EXT_ARG = 1 << 8
IORING_REGISTER_BUFFERS = 0
IORING_UNREGISTER_BUFFERS = 1
IORING_REGISTER_FILES = 2
IORING_REGISTER_RESTRICTIONS = 11
IORING_REGISTER_ENABLE_RINGS = 12
IORING_OP_READ_FIXED = 4
IORING_OP_READ = 22
IOSQE_FIXED_FILE = 1 << 0
# struct io_uring_restriction: kind, the operation or flags, padding. Kinds: an io_uring_register(2), an operation,
# flags that an entry must have.
RESTRICTION = struct.Struct("=HB13x")
RESTRICTIONS = (
    *((0, operation) for operation in (IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS, IORING_REGISTER_FILES)),
    *((1, operation) for operation in (IORING_OP_READ, IORING_OP_READ_FIXED)),
    (3, IOSQE_FIXED_FILE),
)

NEEDED_FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG
# opcode, flags, ioprio, fd, off, addr, len, rw_flags, user_data, buf_index, personality, splice_fd_in, 2 pads
SQE = struct.Struct("=BBHiQQIIQHHiQQ")
CQE = struct.Struct("=QiI")  # user_data, res, flags
UINT32_MASK = 0xFFFFFFFF
X86 = ("x86_64", "i386", "i686")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.syscall.argtypes = [ctypes.c_long] * 7


class _SqOffsets(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("head", "tail", "ring_mask", "ring_entries", "flags")),
        *((name, ctypes.c_uint32) for name in ("dropped", "array", "resv1")),
        ("user_addr", ctypes.c_uint64),
    )


class _CqOffsets(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("head", "tail", "ring_mask", "ring_entries", "overflow")),
        *((name, ctypes.c_uint32) for name in ("cqes", "flags", "resv1")),
        ("user_addr", ctypes.c_uint64),
    )


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("sq_entries", "cq_entries", "flags", "sq_thread_cpu")),
        *((name, ctypes.c_uint32) for name in ("sq_thread_idle", "features", "wq_fd")),
        ("resv", ctypes.c_uint32 * 3),
        ("sq_off", _SqOffsets),
        ("cq_off", _CqOffsets),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


class _GeteventsArg(ctypes.Structure):
    _fields_ = (
        ("sigmask", ctypes.c_uint64),
        ("sigmask_sz", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ts", ctypes.c_uint64),
    )


class _Iovec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_uint64), ("iov_len", ctypes.c_size_t))


def _syscall(number: int, *arguments: int) -> int:
    """Result of the system call; raises OSError with its errno. The GIL is released meanwhile."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    result: int = _LIBC.syscall(number, *padded)
    if result < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, os.strerror(number_of_error))
    return result


class Ring:
    """One io_uring instance with room for ``entries`` reads (rounded up to a power of two by the kernel)."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._stack = ExitStack()
        self._fd = -1
        self._params = _Params()
        self._needs_fence = os.uname().machine not in X86
        self._fence_lock = threading.Lock()
        self._timespec = _Timespec()
        self._argument = _GeteventsArg(ts=ctypes.addressof(self._timespec))
        self._pushed = 0  # queued and not yet taken by the kernel

    def open(self) -> None:
        """Create the ring and map it. Raises OSError: ENOSYS, EPERM, ENOMEM, EMFILE; ENOSYS or EINVAL when too old."""
        with ExitStack() as stack:
            params = _Params(flags=IORING_SETUP_R_DISABLED)
            self._fd = _syscall(NR_IO_URING_SETUP, self._entries, ctypes.addressof(params))
            stack.callback(os.close, self._fd)
            if params.features & NEEDED_FEATURES != NEEDED_FEATURES:
                raise OSError(errno.ENOSYS, "the kernel's io_uring is older than Linux 5.11")
            self._params = params
            self._bind_to_reading()
            self._map(stack)
            self._stack = stack.pop_all()

    def _bind_to_reading(self) -> None:
        """Takes effect when the ring is enabled, for as long as there is one."""
        packed = b"".join(RESTRICTION.pack(kind, value) for kind, value in RESTRICTIONS)
        buffer = ctypes.create_string_buffer(packed, len(packed))
        self._register(IORING_REGISTER_RESTRICTIONS, ctypes.addressof(buffer), len(RESTRICTIONS))
        self._register(IORING_REGISTER_ENABLE_RINGS, 0, 0)

    def _map(self, stack: ExitStack) -> None:
        sq, cq = self._params.sq_off, self._params.cq_off
        nbytes = max(sq.array + 4 * self._params.sq_entries, cq.cqes + CQE.size * self._params.cq_entries)
        self._rings = stack.enter_context(mmap.mmap(self._fd, nbytes, offset=IORING_OFF_SQ_RING))
        sqes = SQE.size * self._params.sq_entries
        self._sqes = stack.enter_context(mmap.mmap(self._fd, sqes, offset=IORING_OFF_SQES))
        # memoryview items of format "I" are single aligned 32-bit loads and stores.
        self._words = stack.enter_context(memoryview(self._rings)[: nbytes & ~3].cast("I"))
        self._sq_head, self._sq_tail = sq.head // 4, sq.tail // 4
        self._cq_head, self._cq_tail = cq.head // 4, cq.tail // 4
        self._sq_mask = self._words[sq.ring_mask // 4]
        self._cq_mask = self._words[cq.ring_mask // 4]
        for slot in range(self._params.sq_entries):
            self._words[sq.array // 4 + slot] = slot  # entries are used in ring order

    def close(self) -> None:
        """Unmap and close. Reads in flight go on in the kernel: drain them first. May be called again."""
        self._stack.close()
        self._fd = -1

    def register_buffers(self, extents: Sequence[tuple[int, int]]) -> None:
        """Pin ``extents`` (address, bytes; at most 1 GiB each). Raises OSError, ENOMEM by RLIMIT_MEMLOCK."""
        vector = (_Iovec * len(extents))(*(_Iovec(address, nbytes) for address, nbytes in extents))
        self._register(IORING_REGISTER_BUFFERS, ctypes.addressof(vector), len(extents))

    def unregister_buffers(self) -> None:
        """Unpin now (closing the ring alone does it some time later). Waits for reads in flight."""
        self._register(IORING_UNREGISTER_BUFFERS, 0, 0)

    def register_files(self, descriptors: Sequence[int]) -> None:
        """Make ``descriptors`` known by their index. Raises OSError, EMFILE by RLIMIT_NOFILE."""
        vector = (ctypes.c_int32 * len(descriptors))(*descriptors)
        self._register(IORING_REGISTER_FILES, ctypes.addressof(vector), len(descriptors))

    def push_read(
        self, user_data: int, file: int, offset: int, address: int, *, length: int, buffer: int | None
    ) -> None:
        """Queue a read of registered file number ``file``, into registered buffer number ``buffer`` if any.

        The caller keeps at most ``entries`` reads queued or in flight. `flush` or `wait` starts it.
        """
        opcode = IORING_OP_READ if buffer is None else IORING_OP_READ_FIXED
        tail = self._words[self._sq_tail]
        slot = (tail & self._sq_mask) * SQE.size
        fields = (opcode, IOSQE_FIXED_FILE, 0, file, offset, address, length, 0, user_data, buffer or 0)
        SQE.pack_into(self._sqes, slot, *fields, 0, 0, 0, 0)
        self._words[self._sq_tail] = (tail + 1) & UINT32_MASK
        self._pushed += 1

    def flush(self) -> None:
        """Hand queued reads to the kernel without waiting; those it has no memory for now stay queued."""
        if self._pushed:
            self._enter(0, 0, 0)

    def wait(self, seconds: float) -> None:
        """Flush, then block until a completion is there, a signal arrived or ``seconds`` are over."""
        whole = int(seconds)
        self._timespec.tv_sec = whole
        self._timespec.tv_nsec = int((seconds - whole) * 1_000_000_000)
        flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG
        self._enter(1, flags, ctypes.addressof(self._argument))

    def reap(self) -> list[tuple[int, int]]:
        """Completions so far, as (user_data, result): bytes read, or a negative errno. Never blocks."""
        head, tail = self._words[self._cq_head], self._words[self._cq_tail]
        if head == tail:
            return []
        self._fence()
        results = []
        base = self._params.cq_off.cqes
        for index in range((tail - head) & UINT32_MASK):
            slot = (head + index) & self._cq_mask
            user_data, result, _ = CQE.unpack_from(self._rings, base + slot * CQE.size)
            results.append((user_data, result))
        self._fence()
        self._words[self._cq_head] = tail
        return results

    def _enter(self, min_complete: int, flags: int, argument: int) -> None:
        size = ctypes.sizeof(_GeteventsArg) if flags & IORING_ENTER_EXT_ARG else 0
        try:
            _syscall(NR_IO_URING_ENTER, self._fd, self._pushed, min_complete, flags, argument, size)
        except OSError as error:
            # ETIME: time is over. EINTR: a signal. EAGAIN, EBUSY: no memory now, entries stay queued.
            if error.errno not in (errno.ETIME, errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise
        self._pushed = (self._words[self._sq_tail] - self._words[self._sq_head]) & UINT32_MASK

    def _register(self, opcode: int, argument: int, count: int) -> None:
        _syscall(NR_IO_URING_REGISTER, self._fd, opcode, argument, count)

    def _fence(self) -> None:
        if self._needs_fence:
            with self._fence_lock:
                pass
            with self._fence_lock:
                pass
