"""What can an engine that was taken over still ask of the kernel, and does what it needs still work?"""

from __future__ import annotations

import errno
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.others import no_filter

pytestmark = pytest.mark.skipif(bool(no_filter()), reason=f"NOT TESTED: what an engine may ask: {no_filter()}")

# What each test runs behind the walls; `call` gives the error of a system call by its name.
BEHIND = """
import ctypes, errno, multiprocessing, os, resource, socket, subprocess, sys, threading
from nvstreamd.engine import walls
library, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None, use_errno=True)
libc.syscall.restype, libc.syscall.argtypes = ctypes.c_long, [ctypes.c_long] * 7
def call(name, *arguments):
    number = library.seccomp_syscall_resolve_name(name.encode())
    padded = [*arguments, *[-1] * (6 - len(arguments))]
    return ctypes.get_errno() if libc.syscall(number, *padded) < 0 else 0
if "none" not in sys.argv:
    assert walls.raise_walls() == []
"""
# With -1 for every argument the kernel refuses each of these, and changes nothing.
FORBIDDEN = """
ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp setuid setgid setreuid setregid setresuid setresgid setfsuid
setgroups capset mount umount2 pivot_root chroot move_mount fsopen open_tree unshare setns clone3 keyctl add_key bpf
perf_event_open userfaultfd init_module finit_module delete_module kexec_load swapon swapoff reboot acct quotactl
settimeofday clock_settime adjtimex sethostname socket connect bind listen accept4 shmget semget msgget
open_by_handle_at name_to_handle_at mknodat chown fchownat ioperm iopl personality process_madvise ioprio_set
"""


def behind_walls(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEHIND + script, *arguments], capture_output=True, text=True,
                          check=False, timeout=60)


def output(script: str, *arguments: str) -> str:
    done = behind_walls(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(*arguments: str) -> dict[str, int]:
    """The error of each forbidden call, except those that this machine's library does not know."""
    found = output(f"""
if "none" not in sys.argv:
    assert walls.make_no_more_sockets() == []
for name in {FORBIDDEN!r}.split(): print(name, call(name))
""", *arguments)
    return {name: int(number) for name, number in (line.split() for line in found.splitlines())}


def test_the_kernel_answers_nothing_that_no_engine_needs() -> None:
    open_without = {name for name, number in answers("none").items() if number != errno.ENOSYS}
    assert {"ptrace", "mount", "socket", "setuid", "unshare"} <= open_without
    assert set(answers().values()) == {errno.ENOSYS}


def test_a_process_in_namespaces_of_its_own_cannot_be_made() -> None:
    """A user namespace gives every capability in it, and with them most of the kernel's doors."""
    assert output("print(call('clone', 0x10000000 | 17, 0, 0, 0, 0))") == f"{errno.ENOSYS}\n"


@pytest.mark.parametrize("upper", [0, 1 << 32])
def test_nothing_is_typed_into_a_terminal(upper: int) -> None:
    """The kernel takes an int: what is above its 32 bits must not make the filter look away."""
    script = f"print(call('ioctl', 0, 0x5412 | {upper}, 0))"
    assert output(script) == f"{errno.EPERM}\n" and output(script, "none") != f"{errno.EPERM}\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT TESTED: calls of another ABI; x86_64 alone has x32")
def test_a_call_of_another_abi_ends_the_process() -> None:
    assert behind_walls("libc.syscall(39 | 0x40000000, 0, 0, 0, 0, 0, 0)").returncode == -signal.SIGSYS


def test_there_is_no_way_back() -> None:
    """Its memory is nobody's to read, not even in a core, and what it starts has the same walls."""
    found = output("print(libc.prctl(3), *resource.getrlimit(resource.RLIMIT_CORE), sep='\\n')\n"
                   "print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)")
    assert found.splitlines()[:3] == ["0", "0", "0"]
    assert "NoNewPrivs:\t1\n" in found and "Seccomp:\t2\n" in found


def test_the_kernel_ends_an_engine_before_the_daemon() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(output("print(open('/proc/self/oom_score_adj').read())")) == min(1000, own + 500) > own


def test_threads_processes_and_channels_are_still_to_be_had() -> None:
    """Kernels compute in threads; templates and schemas are looked at in processes with limits, and those are ended."""
    output("""
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
multiprocessing.Lock().acquire()
ours, theirs = socket.socketpair()
if (child := os.fork()) == 0:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); os.setpriority(os.PRIO_PROCESS, 0, 10)
    socket.send_fds(theirs, [b"x"], [0]); os._exit(0)
assert socket.recv_fds(ours, 1, 1)[0] == b"x" and os.waitpid(child, 0)[1] == 0
process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]); process.kill()
assert process.wait(30) == -9
""")


def test_what_it_loaded_with_is_all_that_it_gets_of_io_uring() -> None:
    """A ring connects sockets and opens files behind a filter's back."""
    found = output("""
setup = lambda: call("io_uring_setup")
print(setup())
print(walls.make_no_more_rings(), setup())
""").splitlines()
    assert found[0] == str(errno.EFAULT) and found[1] == f"[] {errno.EPERM}"


def test_a_cards_driver_may_listen_until_it_is_open_and_nothing_is_reached_by_that() -> None:
    """CUDA fails without it. By a datagram or a connection an engine would reach the journal, systemd, anybody."""
    found = output("""
def tried(act):
    try:
        act()
        return 0
    except OSError as error:
        return error.errno
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
one.bind(f"\\0nvstream-test-{os.getpid()}"); one.listen(1)
print([tried(lambda: socket.socket(family, kind)) for family, kind in (
    (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM),
    (socket.AF_INET, socket.SOCK_SEQPACKET), (socket.AF_NETLINK, socket.SOCK_RAW))])
two = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
print([tried(lambda: two.connect("/nobody")), tried(lambda: two.sendto(b"x", "/nobody")) != 0, tried(one.accept)])
print(walls.make_no_more_sockets())
print([tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)), tried(lambda: two.bind("\\0x")),
       tried(lambda: one.listen(2))])
""").splitlines()
    none = errno.ENOSYS
    assert found == [str([none] * 5), str([none, True, none]), "[]", str([none] * 3)]


def test_a_wall_that_cannot_be_built_is_told() -> None:
    """Nothing falls back silently: `status` shows these notes."""
    notes = output("""
from pathlib import Path
import nvdma.confine as confine
confine.LIBRARY = "libseccomp-of-nobody.so"
walls.OOM_SCORE = Path("/proc/self/nobodys")
print(*walls.raise_walls(), *walls.make_no_more_rings(), *walls.make_no_more_sockets(), sep="\\n")
""", "none").splitlines()
    assert len(notes) == 4 and all("a wall less" in note for note in notes)
    assert "libseccomp-of-nobody.so" in notes[1]
