"""Does an engine have workers again after the system had none for a moment, and notice when it never will?"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvstreamd.engine.preparation.forks import Forks, ForksLost, NoWorker
from nvstreamd.engine.preparation.worker import receive_exactly
from nvstreamd.engine.threads import ThreadLost, Threads
from nvstreamd.wire.engine_pb2 import Encoded, FromEngine
from nvstreamd.wire.frames import HEADER, frame, length_of

SECONDS = 20.0


def echo(channel: socket.socket, costly: bool) -> None:
    """A worker that answers with its own process id."""
    header = receive_exactly(channel, HEADER.size)
    assert header is not None
    receive_exactly(channel, length_of(header))
    channel.sendall(frame(FromEngine(encoded=Encoded(id=os.getppid())).SerializeToString()))


def answers(channel: socket.socket, costly: bool) -> None:
    """A worker that answers with its parent's process id, as often as it is asked."""
    while (header := receive_exactly(channel, HEADER.size)) is not None:
        receive_exactly(channel, length_of(header))
        channel.sendall(frame(FromEngine(encoded=Encoded(id=os.getppid())).SerializeToString()))


@pytest.mark.parametrize("problem", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_fails_is_one_calls_failure(problem: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that forks ended by it, and its model refused every text from then on, but was called SERVING."""
    fork, failing = os.fork, [False, True, False]

    def sometimes() -> int:
        if failing.pop(0):
            raise OSError(problem, os.strerror(problem))
        return fork()

    with ExitStack() as stack:
        forks = Forks(echo)
        monkeypatch.setattr(os, "fork", sometimes)
        forks.start(stack)
        with pytest.raises(NoWorker) as refused:
            forks.worker(costly=False)
        assert refused.value.status == "UNAVAILABLE"
        worker = forks.worker(costly=False)
        stack.callback(worker.close)
        assert worker.ask(b"").encoded.id > 0


def test_the_end_of_the_process_that_forks_is_noticed() -> None:
    with ExitStack() as stack:
        forks = Forks(echo)
        forks.start(stack)
        worker = forks.worker(costly=False)
        os.kill(worker.ask(b"").encoded.id, signal.SIGKILL)
        worker.close()
        with pytest.raises(ForksLost):
            while True:
                # Until the kernel has ended it.
                forks.worker(costly=False).close()


def engine(told: socket.socket) -> None:
    """Tells the process ids of its fork server and of a worker, and waits to be killed."""
    with ExitStack() as stack:
        forks = Forks(answers)
        forks.start(stack)
        worker = forks.worker(costly=False)
        lines = Path(f"/proc/self/fdinfo/{worker.pidfd}").read_text().splitlines()
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
        told.sendall(f"{worker.ask(b'').encoded.id} {pid}".encode())
        signal.pause()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_what_is_stopped_does_not_outlive_its_engine() -> None:
    """It saw nobody close its channel, and stayed for ever with all that a tokenizer takes."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            engine(theirs)
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(SECONDS)
    left = {os.pidfd_open(int(each)): int(each) for each in ours.recv(100).split()}
    ours.close()
    try:
        for stopped in left.values():
            os.kill(stopped, signal.SIGSTOP)
            while not is_stopped(stopped):
                pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for pidfd in list(left):
            # It can be read from when the process has ended: pidfd_open(2).
            assert select.select([pidfd], [], [], SECONDS)[0], f"process {left[pidfd]} is still there"
            del left[pidfd]
            os.close(pidfd)
    finally:
        for pidfd in left:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def test_a_thread_that_ends_ends_the_engine_by_what_the_daemon_takes_for_a_loss() -> None:
    """As an error of ours it ended the model for everybody, until an administrator loaded it again."""
    ended: list[ThreadLost] = []
    with ExitStack() as stack:
        read, write = os.pipe()
        stack.callback(os.close, read)

        def failed(error: ThreadLost) -> None:
            ended.append(error)
            os.close(write)

        Threads(failed).run("test", lambda: Path("/nonexistent/file").touch())
        assert os.read(read, 1) == b""
    assert str(ended[0]) == "test"
