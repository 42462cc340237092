"""What does the io_uring backend do where the kernel gives it less than it wants?"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import nvdma
from nvdma.arena import Arena
from nvdma.backends.ring import Ring
from nvdma.backends.uring import UringBackend
from nvdma.errors import BackendUnavailable, InvalidRead, ReadFailed
from nvdma.types import Completion, Read, Source
from unit.nvdma.rig import MIB, PAGE, SECONDS, Rig, drain, pattern

# Runs as nobody, without capabilities, when root starts it; prints the facts and the digest of what it read.
UNPRIVILEGED = """
import fcntl, os, resource, sys
from hashlib import sha256
from nvdma.arena import Arena
from nvdma.backends.ring import Ring
from nvdma.backends.uring import UringBackend
from nvdma.types import Read, Source
fd, limit = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
before = fcntl.fcntl(fd, fcntl.F_GETFL)
with Arena(1 << 20) as arena:
    backend = UringBackend([Source(fd, "/models/m.gguf", 1 << 20)], arena)
    backend.open()
    backend.submit([Read(1, 0, 0, 1 << 20, 0)])
    backend.wait(20)
    print(backend.facts.registered_buffers)
    print(sha256(arena.view).hexdigest())
    backend.close()
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == before, "close() left O_DIRECT on a descriptor it does not own"
    print(*backend.facts.notes, sep="\\n")
"""

# A container's seccomp profile: io_uring_setup(2) gives EPERM (linux/filter.h, linux/seccomp.h).
FORBIDDEN = """
import ctypes, errno, os, struct, sys
from nvdma.arena import Arena
from nvdma.backends.ring import Ring
from nvdma.backends.uring import UringBackend
from nvdma.errors import BackendUnavailable
from nvdma.types import Source
number = int(sys.argv[2])
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
fds = os.listdir("/proc/self/fd")
with Arena(4096) as arena:
    try:
        UringBackend([Source(int(sys.argv[1]), "/models/m.gguf", 4096)], arena).open()
    except BackendUnavailable as error:
        print(error)
assert len(os.listdir("/proc/self/fd")) == len(fds), "a refused backend leaks descriptors"
"""


def in_child(script: str, *arguments: int) -> list[str]:
    """Run ``script`` in its own process; the first argument is a descriptor. Its output lines."""
    root = str(Path(nvdma.__file__).parent.parent)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": root},
        pass_fds=arguments[:1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_with_locked_memory_allowed_the_arena_is_pinned_and_reads_are_direct(uring_rig: Rig) -> None:
    source, arena = uring_rig.file("model", {0: pattern(PAGE)}), uring_rig.arena(PAGE)
    facts = uring_rig.backend([source], arena).facts
    assert facts.direct and facts.registered_buffers and facts.notes == ()
    assert 512 <= facts.alignment <= PAGE and facts.alignment & (facts.alignment - 1) == 0


def test_without_locked_memory_it_reads_unpinned_and_says_how_to_pin(uring_rig: Rig) -> None:
    data = pattern(MIB)
    source = uring_rig.file("model", {0: data})
    os.chmod(source.path, 0o600)
    registered, digest, *notes = in_child(UNPRIVILEGED, source.fd, 64 << 10)
    assert (registered, digest) == ("False", hashlib.sha256(data).hexdigest())
    (memlock,) = [note for note in notes if "registered buffers" in note]
    assert f"needs {MIB} bytes" in memlock and f"allows this user {64 << 10}" in memlock
    assert "LimitMEMLOCK=" in memlock and "ulimit -l" in memlock
    # Only root can become somebody who may not reopen the file.
    reopening = [note for note in notes if "/models/m.gguf" in note]
    assert len(reopening) == (1 if os.geteuid() == 0 else 0)
    assert all("O_DIRECT is set on the descriptor that was handed over" in note for note in reopening)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EPERM, "seccomp"), (errno.ENOSYS, "Linux 5.15"), (errno.ENOMEM, "ulimit -l")],
)
def test_a_refused_ring_says_who_refuses_it_and_what_helps(uring_rig: Rig, number: int, remedy: str) -> None:
    source = uring_rig.file("model", {0: pattern(PAGE)})
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    if number == errno.EPERM and setting.exists() and setting.read_text().strip() != "0":
        remedy = "kernel.io_uring_disabled"
    (message,) = in_child(FORBIDDEN, source.fd, number)
    assert remedy in message


def test_a_file_system_without_direct_io_is_refused_by_name_or_read_right() -> None:
    # tmpfs refused O_DIRECT before Linux 6.6 and takes it since: one of the two must hold.
    data = pattern(2 * PAGE)
    path = Path("/dev/shm") / f"nvdma-test-{os.getpid()}"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        takes = _takes_direct(fd)
        with Arena(2 * PAGE) as arena:
            backend = UringBackend([Source(fd, str(path), len(data))], arena)
            if not takes:
                with pytest.raises(BackendUnavailable, match=f"{path}.*O_DIRECT.*'pread'"):
                    backend.open()
                return
            backend.open()
            with closing(backend):
                backend.submit([Read(1, 0, 0, 2 * PAGE, 0)])
                assert backend.wait(SECONDS) == [Completion(1, 2 * PAGE)]
            assert bytes(arena.view) == data
    finally:
        os.close(fd)


def _takes_direct(fd: int) -> bool:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_something_without_direct_io_at_all_is_refused() -> None:
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        with Arena(PAGE) as arena, pytest.raises(BackendUnavailable, match=r"/proc/self/maps.*'pread'"):
            UringBackend([Source(fd, "/proc/self/maps", PAGE)], arena).open()
    finally:
        os.close(fd)


def test_the_callers_descriptor_stays_buffered(uring_rig: Rig) -> None:
    source, arena = uring_rig.file("model", {0: pattern(PAGE)}), uring_rig.arena(PAGE)
    uring_rig.backend([source], arena)
    assert not fcntl.fcntl(source.fd, fcntl.F_GETFL) & os.O_DIRECT
    assert os.pread(source.fd, 3, 1) == pattern(PAGE)[1:4]


@pytest.mark.parametrize("field", ["offset", "length", "target"])
def test_an_unaligned_read_is_refused_before_the_kernel_sees_it(uring_rig: Rig, field: str) -> None:
    source, arena = uring_rig.file("model", {0: pattern(4 * PAGE)}), uring_rig.arena(4 * PAGE)
    backend = uring_rig.backend([source], arena)
    numbers = {"offset": 0, "length": PAGE, "target": 0}
    numbers[field] += 100
    with pytest.raises(InvalidRead, match=f"{field} {numbers[field]} is no multiple"):
        backend.submit([Read(1, 0, **numbers)])


def test_a_read_across_two_registered_buffers_arrives_whole(uring_rig: Rig) -> None:
    data = pattern(12 * PAGE + 9)
    source, arena = uring_rig.file("model", {0: data}), uring_rig.arena(16 * PAGE, canary=7)
    backend = UringBackend([source], arena, max_buffer=4 * PAGE)
    backend.open()
    with closing(backend):
        assert backend.facts.registered_buffers
        backend.submit([Read(1, 0, 0, 13 * PAGE, 3 * PAGE)])
        assert drain(backend) == ({1: len(data)}, [])
    assert arena.view[: 3 * PAGE] == bytes([7]) * 3 * PAGE
    assert arena.view[3 * PAGE : 3 * PAGE + len(data)] == data


def test_a_fault_in_the_middle_of_a_read_is_an_error_of_that_read(uring_rig: Rig) -> None:
    source, arena = uring_rig.file("model", {0: pattern(4 * PAGE)}), uring_rig.arena(4 * PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_void_p(arena.address + 2 * PAGE)
    backend = UringBackend([source], arena, registered=False)
    backend.open()
    with closing(backend):
        assert libc.mprotect(page, PAGE, 0) == 0
        backend.submit([Read(1, 0, 0, 4 * PAGE, 0), Read(2, 0, 0, PAGE, 0)])
        done, (error,) = drain(backend)
        assert libc.mprotect(page, PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert done == {2: PAGE}
    assert isinstance(error, ReadFailed) and (error.tag, error.errno) == (1, errno.EFAULT)


def test_more_reads_than_the_ring_has_entries_wrap_around(uring_rig: Rig) -> None:
    data = pattern(8 * PAGE)
    source, arena = uring_rig.file("model", {0: data}), uring_rig.arena(8 * PAGE)
    backend = uring_rig.backend([source], arena, depth=3)
    for turn in range(50):
        page = turn % 8
        backend.submit([Read(turn, 0, page * PAGE, PAGE, page * PAGE)])
        assert backend.wait(SECONDS) == [Completion(turn, PAGE)]
    assert bytes(arena.view) == data


def test_compute_threads_run_while_a_wait_is_blocked() -> None:
    gate, ran = threading.Lock(), threading.Event()
    ring = Ring(1)
    ring.open()
    interval = sys.getswitchinterval()
    gate.acquire()
    with closing(ring):

        def work() -> None:
            with gate:
                ran.set()

        worker = threading.Thread(target=work)
        worker.start()
        # From here on the interpreter takes the GIL from nobody: the worker runs when a wait gives it up.
        sys.setswitchinterval(1000.0)
        gate.release()
        try:
            for _ in range(50):
                if not ran.is_set():
                    ring.wait(0.1)
            ran_beside_the_wait = ran.is_set()
        finally:
            sys.setswitchinterval(interval)
        worker.join(SECONDS)
    assert ran_beside_the_wait


def test_a_ring_does_nothing_but_read_what_it_was_given(tmp_path: Path) -> None:
    """No filter of system calls sees what a ring is asked for; whoever took over its process must not get more."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    nop, openat, socket = 0, 18, 45
    fd = os.open(path, os.O_RDONLY)
    ring = Ring(8)
    ring.open()
    with mmap.mmap(-1, PAGE) as buffer:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        ring.register_files([fd])
        ring.push_read(1, 0, 0, address, length=PAGE, buffer=None)
        ring.wait(SECONDS)
        assert ring.reap() == [(1, PAGE)]
        for operation in (nop, openat, socket):
            ring.push_read(2, 0, 0, address, length=0, buffer=None)
            ring._sqes[(ring._words[ring._sq_tail] - 1 & ring._sq_mask) * 64] = operation
            ring.wait(SECONDS)
            assert ring.reap() == [(2, -errno.EACCES)], operation
    ring.close()
    os.close(fd)
