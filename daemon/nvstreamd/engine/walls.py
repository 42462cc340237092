"""What can an engine still do to its machine, once a hostile file or prompt has taken it over?

It reads what users send and what model files hold, so it builds its own walls before the first byte of either: nobody
reads its memory, no program that it starts gains rights, and the kernel answers only calls that an engine makes. What
a ring of io_uring is asked for passes no filter: those that it loads with only read (nvdma.backends.ring), and when
it has them it can make no others.

The list names what is allowed, by kind, and widely within a kind: which call of a kind is used is up to libc, Python
and torch, and changes with their versions. All the rest fails with ENOSYS, as on a kernel that does not have it:
libraries are written for older kernels and know another way, while EPERM would be an error to them. A list of what is
denied would be open for every call that a later kernel brings. What is left out: other processes' memory (ptrace,
process_vm_*, pidfd_getfd, kcmp), identity (set*uid, setgroups, capset), mounts, namespaces, keys, bpf, perf,
userfaultfd, modules, kexec, swap, clocks, accounting, quota, sockets but for pairs, System V's shared objects, file
handles, device nodes, owners of files, and what slows down everybody's disks (sync, ioprio_set).

A card's driver listens on a socket of its own while it makes a context, for processes that would share memory with it
(seen with libcuda 580: SOCK_SEQPACKET, an abstract name, cudaErrorOperatingSystem without it). So such a socket can be
made until the weights are there, but nothing can be reached by it: no connection is made or taken, and a sequenced
socket sends nothing without one.
"""

from __future__ import annotations

import errno
import resource
import socket
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nvdma.confine import Argument, Compare, Filters, Rule, gain_nothing, hide_memory, show_memory

# Bytes, files that the uid may reach, and what an import makes of them.
FILES: Final = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range splice tee
    open openat openat2 close close_range dup dup2 dup3 fcntl flock ioctl umask
    stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64
    statfs fstatfs getcwd chdir fchdir
    fsync fdatasync sync_file_range fallocate truncate ftruncate fadvise64 readahead
    mkdir mkdirat rmdir link linkat rename renameat renameat2 unlink unlinkat chmod fchmod fchmodat fchmodat2 utimensat
    memfd_create
"""
MEMORY: Final = """
    brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall munlockall membarrier
    get_mempolicy set_mempolicy mbind pkey_alloc pkey_mprotect pkey_free map_shadow_stack
"""
# Threads, and the small processes that an engine starts for templates and schemas. Which processes it may send signals
# to is up to its uid. Without clone3, whose flags a filter cannot see, libc uses clone.
PROCESSES: Final = """
    fork vfork execve exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
    set_tid_address set_robust_list get_robust_list rseq futex futex_waitv futex_wake futex_wait futex_requeue
    gettid getpid getppid getpgid getpgrp getsid setsid setpgid getuid geteuid getgid getegid getresuid getresgid
    getgroups capget prctl arch_prctl seccomp getrlimit setrlimit prlimit64 getrusage times sysinfo uname getcpu
    sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_get
"""
WAITING: Final = """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack signalfd signalfd4
    pause alarm restart_syscall poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 pipe pipe2
    time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime getrandom
"""
# Over the pair that it has to the daemon, and pairs to its own children.
CHANNELS: Final = """
    sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockname getpeername getsockopt setsockopt
"""
NEW_RING: Final = "io_uring_setup"
LISTENING: Final = "bind listen"
SOCKET: Final = "socket"
SOCKET_TYPE: Final = 0xF
RINGS: Final = "io_uring_enter io_uring_register"
CLONE_NEW_ANYTHING: Final = 0x7E020000
TIOCLINUX: Final = 0x541C
INT: Final = 0xFFFFFFFF
ALLOWED: Final = (
    *(Rule(call) for calls in (FILES, MEMORY, PROCESSES, WAITING, CHANNELS, RINGS, NEW_RING, LISTENING)
      for call in calls.split()),
    Rule("clone", (Argument(0, Compare.MASKED_IS, 0, CLONE_NEW_ANYTHING),)),
    Rule("socketpair", (Argument(0, Compare.IS, socket.AF_UNIX),)),
    Rule(SOCKET, (Argument(0, Compare.IS, socket.AF_UNIX),
                  Argument(1, Compare.MASKED_IS, socket.SOCK_SEQPACKET, SOCKET_TYPE))),
)
# Both type into a terminal, as if its user had.
REFUSED: Final = tuple(Rule("ioctl", (Argument(1, Compare.MASKED_IS, request, INT),))
                       for request in (termios.TIOCSTI, TIOCLINUX))
# When memory runs out the kernel ends an engine, which is replaced, before the daemon and other people's programs.
EARLIER_BY: Final = 500
OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
HIGHEST_SCORE: Final = 1000


def raise_walls() -> list[str]:
    """Takes away from this process what it does not need. Returns what is missing of that, and why, one a note."""
    walls: list[tuple[str, Callable[[], None]]] = [
        ("the kernel may end the daemon before its engine", _die_first),
        ("a crash may write its memory to a file", _leave_no_core),
        ("programs that it starts may gain rights", gain_nothing),
        ("processes of its user can read its memory", hide_memory),
        ("it may make every system call", _filter_calls),
    ]
    return [f"the engine has a wall less: {without}: {error}" for without, build in walls
            if (error := _tried(build)) is not None]


def make_no_more_rings() -> list[str]:
    """After this no ring of io_uring can be made. Returns what is missing, as `raise_walls` does."""
    error = _tried(lambda: Filters().refuse([Rule(NEW_RING)], errno.EPERM))
    return [] if error is None else [f"the engine has a wall less: it may make more rings of io_uring: {error}"]


def make_no_more_sockets() -> list[str]:
    """After this neither a socket can be made nor one bound. Returns what is missing, as `raise_walls` does."""
    calls = [Rule(call) for call in (SOCKET, *LISTENING.split())]
    error = _tried(lambda: Filters().refuse(calls, errno.ENOSYS))
    return [] if error is None else [f"the engine has a wall less: it may make sockets that listen: {error}"]


def _tried(build: Callable[[], None]) -> OSError | None:
    try:
        build()
    except OSError as error:
        return error
    return None


def _die_first() -> None:
    """Before `hide_memory`: after that the file is root's."""
    OOM_SCORE.write_text(str(min(HIGHEST_SCORE, int(OOM_SCORE.read_text()) + EARLIER_BY)))


def go_first() -> None:
    """Has the kernel end this process, a worker's, before the engine. Its memory is hidden by then: not for a moment.

    Raises OSError.
    """
    show_memory()
    try:
        OOM_SCORE.write_text(str(HIGHEST_SCORE))
    finally:
        hide_memory()


def _leave_no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _filter_calls() -> None:
    filters = Filters()
    filters.refuse(REFUSED, errno.EPERM)
    filters.allow_only(ALLOWED, errno.ENOSYS)
