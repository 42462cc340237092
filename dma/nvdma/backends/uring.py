"""How are bytes read at the drive's speed with almost no CPU? io_uring, O_DIRECT, pinned buffers.

The arena is registered once (IORING_REGISTER_BUFFERS), so the kernel neither looks up nor pins pages per
read, and files are registered, so it takes no reference per read. A pinned arena is preferred, not required:
when the kernel refuses it ``facts.notes`` say so. Why the ring is ours: see `nvdma.backends.ring`.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from nvdma.arena import Arena
from nvdma.backends.direct import DEFAULT_ALIGNMENT, direct_alignment, open_direct
from nvdma.backends.ring import Ring
from nvdma.errors import BackendUnavailable, DeadlineExceeded
from nvdma.ledger import Ledger, Pending, check_sources
from nvdma.types import BackendFacts, Completion, Read, Source

# The kernel takes at most 1 GiB a registered buffer (io_uring_register(2)).
MAX_BUFFER = 1 << 30
MAX_READ = 64 << 20
CLOSE_TIMEOUT_SECONDS = 30.0
DISABLED_SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


class UringBackend:
    """Direct reads of ``sources`` into ``arena``, up to ``depth`` in flight; see `nvdma.backend.Backend`.

    ``max_read`` is in bytes. ``registered=False`` leaves the arena unpinned, for comparison; it is pinned in
    pieces of ``max_buffer`` bytes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        arena: Arena,
        depth: int = 8,
        *,
        max_read: int = MAX_READ,
        registered: bool = True,
        max_buffer: int = MAX_BUFFER,
    ) -> None:
        self.facts = BackendFacts("uring", depth, max_read, DEFAULT_ALIGNMENT, False, True)
        self._sources = tuple(sources)
        self._arena = arena
        self._registered = registered
        self._max_buffer = max_buffer
        self._ring = Ring(depth)
        self._ledger = Ledger(self.facts, self._sources, arena.nbytes)
        self._stack = ExitStack()
        self._is_open = False

    @property
    def in_flight(self) -> int:
        """Number of reads whose outcome has not been handed out."""
        return self._ledger.in_flight

    def open(self) -> None:
        """Make the ring, reopen the files, pin the arena. Raises BackendUnavailable and ReadFailed."""
        if self._is_open:
            raise RuntimeError("the backend is open already")
        check_sources(self._sources)
        with ExitStack() as stack:
            alignment = max(map(direct_alignment, self._sources), default=DEFAULT_ALIGNMENT)
            self._check_arena(alignment)
            opened = [open_direct(source, stack) for source in self._sources]
            self._open_ring(stack)
            self._register_files([fd for fd, _ in opened])
            notes = [note for _, note in opened if note]
            refused = self._register_arena(stack)
            notes += [refused] if refused else []
            is_registered = refused is None
            self.facts = replace(
                self.facts, alignment=alignment, registered_buffers=is_registered, notes=tuple(notes)
            )
            self._ledger = Ledger(self.facts, self._sources, self._arena.nbytes)
            self._stack = stack.pop_all()
        self._is_open = True

    def submit(self, reads: Sequence[Read]) -> None:
        """Starts ``reads``, all or none. Raises QueueFull and InvalidRead."""
        self._push(self._ledger.admit(reads))

    def poll(self) -> list[Completion]:
        """The reads completed since the last call, perhaps none. Raises ReadFailed or ShortRead, one at a time."""
        self._reap()
        return self._ledger.take()

    def wait(self, timeout: float) -> list[Completion]:
        """At least one completion within ``timeout`` seconds.

        Raises what `poll` raises, DeadlineExceeded, and NothingInFlight without any read to wait for.
        """
        self._ledger.check_waitable()
        self._wait_until(timeout, lambda: self._ledger.has_outcomes)
        return self._ledger.take()

    def close(self) -> None:
        """Lets the reads in flight end, unpins and closes. Raises DeadlineExceeded, and may be called again then."""
        if not self._is_open:
            return
        # A read that a drive has begun cannot be cancelled: only its end makes the arena safe.
        self._wait_until(CLOSE_TIMEOUT_SECONDS, lambda: not self._ledger.outstanding)
        self._ledger.clear()
        self._is_open = False
        self._stack.close()

    def _push(self, pendings: Iterable[Pending]) -> None:
        for pending in pendings:
            read, done = pending.read, pending.done
            target, length = read.target + done, read.length - done
            buffer = None
            if self.facts.registered_buffers:
                # A read across two registered buffers becomes a partial completion.
                buffer = target // self._max_buffer
                length = min(length, self._max_buffer - target % self._max_buffer)
            address = self._arena.address + target
            offset = read.offset + done
            self._ring.push_read(read.tag, read.source, offset, address, length=length, buffer=buffer)
        self._ring.flush()

    def _reap(self) -> None:
        landed = (self._ledger.landed(tag, result) for tag, result in self._ring.reap())
        self._push([pending for pending in landed if pending is not None])

    def _wait_until(self, timeout: float, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        self._reap()
        while not is_over():
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(self._ledger.describe_outstanding(), timeout)
            self._ring.wait(left)
            self._reap()

    def _check_arena(self, alignment: int) -> None:
        if self._arena.address % alignment:
            raise BackendUnavailable(
                f"the arena begins at {self._arena.address:#x}, no multiple of direct I/O's {alignment}",
                hint=f"make it with Arena(nbytes, alignment={alignment})",
            )

    def _open_ring(self, stack: ExitStack) -> None:
        try:
            self._ring.open()
        except OSError as error:
            raise _no_ring(error) from error
        stack.callback(self._ring.close)

    def _register_files(self, descriptors: Sequence[int]) -> None:
        if not descriptors:
            return
        try:
            self._ring.register_files(descriptors)
        except OSError as error:
            raise BackendUnavailable(
                f"registering {len(descriptors)} files with io_uring failed: {error.strerror}",
                hint="raise the limit of open files (LimitNOFILE=, `ulimit -n`), or use 'pread'",
            ) from error

    def _register_arena(self, stack: ExitStack) -> str | None:
        """Pin the arena; a note when it stays unpinned."""
        if not self._registered:
            return "registered buffers are not in use: the caller asked for registered=False"
        size, step = self._arena.nbytes, self._max_buffer
        pieces = [(self._arena.address + at, min(step, size - at)) for at in range(0, size, step)]
        try:
            self._ring.register_buffers(pieces)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise BackendUnavailable(f"registering the arena failed: {error.strerror}") from error
            return _memlock_note(size)
        stack.callback(self._unregister)
        return None

    def _unregister(self) -> None:
        # The ring's end unpins as well, only later: an error here loses nothing.
        with suppress(OSError):
            self._ring.unregister_buffers()


def _memlock_note(nbytes: int) -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return (
        f"registered buffers are not in use: the arena needs {nbytes} bytes of locked memory and "
        f"RLIMIT_MEMLOCK allows this user {limit}; raise it with LimitMEMLOCK= (systemd) or `ulimit -l`"
    )


def _no_ring(error: OSError) -> BackendUnavailable:
    """Why io_uring_setup(2) failed, and what helps."""
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return BackendUnavailable(
            f"the kernel {os.uname().release} has no io_uring that can be used ({errno.errorcode[error.errno]})",
            hint="use Linux 5.15 or later built with CONFIG_IO_URING, or 'pread'",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        setting = DISABLED_SYSCTL.read_text().strip() if DISABLED_SYSCTL.exists() else "0"
        if setting != "0":
            return BackendUnavailable(
                f"io_uring is switched off by the sysctl kernel.io_uring_disabled = {setting}",
                hint="`sysctl kernel.io_uring_disabled=0`, or set kernel.io_uring_group to its group",
            )
        return BackendUnavailable(
            "io_uring_setup is forbidden (EPERM) by a seccomp filter or a security module",
            hint="allow io_uring_setup, _enter and _register in the container's seccomp profile",
        )
    return BackendUnavailable(
        f"io_uring_setup failed: {error.strerror}", hint="check `ulimit -l` and `ulimit -n`, or use 'pread'"
    )
