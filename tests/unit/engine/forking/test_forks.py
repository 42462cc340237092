"""Does an engine have workers again after the system had none for a moment, and notice when it never will?"""

from __future__ import annotations

import errno
import os
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


def echo(channel: socket.socket, costly: bool) -> None:
    """A worker that answers with its own process id."""
    header = receive_exactly(channel, HEADER.size)
    assert header is not None
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
