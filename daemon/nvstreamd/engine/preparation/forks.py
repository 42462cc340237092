"""How does an engine get workers in a few milliseconds, without the memory, the threads and the drives that it has?

Before it has any of those it forks a process that does nothing but fork: each worker is a fork of that.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from nvdma.confine import end_with
from nvstreamd.engine.preparation.worker import receive_exactly, refusal
from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import FromEngine
from nvstreamd.wire.frames import HEADER, frame, length_of

# Longer than any worker may compute: a template and a schema have their own deadlines.
ANSWER_SECONDS: Final = 90.0
FORK_SECONDS: Final = 10.0
STDERR: Final = 2
CHEAP, COSTLY = b"w", b"c"
# The answer in place of a worker.
NONE_NOW: Final = b"n"

Work = Callable[[socket.socket, bool], None]


class NoWorker(NvstreamError):
    """No worker can be forked now."""

    status = "UNAVAILABLE"


class ForksLost(Exception):
    """No worker will be forked any more: the engine is of no use."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process: `pidfd` ends it (pidfd_open(2)), `channel` speaks to it."""

    pidfd: int
    channel: socket.socket

    def ask(self, question: bytes) -> FromEngine:
        """The answer to a packed Prepare. Raises NvstreamError when there is none: a limit, `end`, or too late."""
        try:
            self.channel.sendall(frame(question))
            header = receive_exactly(self.channel, HEADER.size)
            body = None if header is None else receive_exactly(self.channel, length_of(header))
        except TimeoutError:
            raise refusal(f"gave no answer in {self.channel.gettimeout():g} s") from None
        except OSError:
            body = None
        if body is None:
            raise refusal("went past its limits of memory or time")
        return FromEngine.FromString(body)

    def end(self) -> None:
        """Kills the process, whatever it does; `ask` then raises."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Ends it and lets go of it."""
        self.end()
        self.channel.close()
        os.close(self.pidfd)


class Forks:
    """Forks workers that run `work` with their end of a channel, and whether what they are asked is costly.

    A worker has `answer_seconds` for an answer. Not for several threads at once.
    """

    def __init__(self, work: Work, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._work = work
        self._answer_seconds = answer_seconds
        self._asking: socket.socket | None = None

    def start(self, stack: ExitStack) -> None:
        """Forks the process that forks. To be called while there is no thread beside this one."""
        ours, theirs = socket.socketpair()
        # What is there now is never freed: collecting garbage would only unshare its pages.
        gc.collect()
        gc.freeze()
        parent = os.getpid()
        if os.fork() == 0:
            _child(lambda: _fork_when_asked(theirs, self._work), theirs, parent)
        theirs.close()
        ours.settimeout(FORK_SECONDS)
        stack.callback(ours.close)
        self._asking = ours

    def worker(self, costly: bool) -> Worker:
        """A new one. Raises NoWorker when there is none now, ForksLost when there will be none again."""
        assert self._asking is not None
        ours, theirs = socket.socketpair()
        ours.settimeout(self._answer_seconds)
        with theirs:
            try:
                socket.send_fds(self._asking, [COSTLY if costly else CHEAP], [theirs.fileno()])
                told, descriptors, _, _ = socket.recv_fds(self._asking, 1, 1)
            except OSError:
                # One that answers late is out of step: its next answer would be of this worker.
                told, descriptors = b"", []
        if descriptors:
            return Worker(descriptors[0], ours)
        ours.close()
        if told == NONE_NOW:
            raise NoWorker("there is no process to prepare the request in: the system has none left, or no memory",
                           "try again later")
        raise ForksLost("the process that forks workers is gone")


def _fork_when_asked(asked: socket.socket, work: Work) -> None:
    """The life of the process that forks. The kernel takes away what its children leave: signal(2), SIG_IGN."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        told, descriptors, _, _ = socket.recv_fds(asked, 1, 1)
        if not told:
            return
        try:
            with socket.socket(fileno=descriptors.pop()) as channel:
                pidfd = _fork(channel, work, told == COSTLY)
        except (OSError, IndexError):
            # What is wanting now, processes, descriptors or memory, may be there again for the next.
            asked.sendall(NONE_NOW)
            continue
        socket.send_fds(asked, [told], [pidfd])
        os.close(pidfd)


def _fork(channel: socket.socket, work: Work, costly: bool) -> int:
    """A worker's pidfd. Raises OSError when the kernel makes none, or has ended it already."""
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        _begin(channel, work, costly, parent)
    return os.pidfd_open(pid)


def _begin(channel: socket.socket, work: Work, costly: bool, parent: int) -> None:
    """The life of a worker, which has children of its own and waits for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _child(lambda: work(channel, costly), channel, parent)


def _child(life: Callable[[], None], kept: socket.socket, parent: int) -> None:
    """Runs `life` in a fork with no descriptor but `kept`, then ends it. What it would print may be a user's.

    It ends with its parent also when it is stopped, and sees no channel being closed.
    """
    status = 1
    try:
        end_with(parent)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(STDERR + 1):
            os.dup2(null, number)
        keep = kept.fileno()
        os.closerange(STDERR + 1, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        life()
        status = 0
    finally:
        os._exit(status)
