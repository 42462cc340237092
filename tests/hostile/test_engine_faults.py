"""Does any error on any thread of an engine lose more than the one request that it is of?

Each path is taken once, in a real engine (support.sabotage): a request's own errors are that request's, a thread that
ends takes the engine with it, streams go on in the next one, and no engine is ever deaf.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from hostile.faulty import FIND, PROMPT, SECRET, await_another, code_and_text, ids_of, tokenize
from nvstream.v1 import inference_pb2 as inference
from support.daemon import DEADLINE, Collected, Daemon
from support.sabotage import Sabotaged

pytestmark = pytest.mark.usefixtures("all_is_well_afterwards")
RAISED = {"MemoryError": "MemoryError", **{kind: f"{kind}({SECRET!r})" for kind in ("RuntimeError", "KeyError")}}
OF_A_REQUEST = {
    "drawing": ("nvstreamd.engine.sampling", "choose"),
    "accepting": ("nvstreamd.engine.delivery", "Delivery._accept"),
    "showing": ("nvstreamd.engine.output", "Output.push"),
    "ending": ("nvstreamd.engine.delivery", "usage_of"),
    "looking at it": ("nvstreamd.engine.prompts", "Prompts.questions"),
    "queueing its text": ("nvstreamd.engine.preparation.desk", "Desk.put"),
    "asking a worker": ("nvstreamd.engine.preparation.forks", "Worker.ask"),
    "remembering": ("nvstreamd.engine.preparation.remembered", "Remembered.find"),
    "making it a request": ("nvstreamd.engine.prompts", "Prompts.request"),
    "handing it over": ("nvstreamd.engine.intake", "Intake.ready"),
}


@pytest.mark.parametrize("raises", RAISED)
@pytest.mark.parametrize("where", OF_A_REQUEST)
def test_an_error_of_one_request_is_its_failure_alone(served: Sabotaged, expected: list[int], where: str,
                                                      raises: str) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    served.fail_once(*OF_A_REQUEST[where], RAISED[raises])
    code, text = code_and_text(daemon.generate("m", SECRET, max_tokens=2).error)
    assert code == grpc.StatusCode.INTERNAL and raises in text and SECRET not in text and len(text) < 1300
    assert ids_of(daemon) == expected and daemon.engine("m").pid == pid
    assert f"{raises} at " in daemon.log.read_text().splitlines()[-1], "the log says where, as the hint says"


def test_an_error_while_guessing_costs_the_guesses_alone(served: Sabotaged, expected: list[int]) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    served.fail_once("nvstreamd.engine.speculation.drafts", "Drafts._guess", RAISED["RuntimeError"])
    assert ids_of(daemon) == expected and daemon.engine("m").pid == pid
    assert "nothing is guessed for a request any more: RuntimeError at " in daemon.log.read_text()


@pytest.mark.parametrize("where", ["looking at it", "queueing its text", "asking a worker", "remembering", "answering"])
def test_an_error_of_one_text_is_its_failure_alone(served: Sabotaged, where: str) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    served.fail_once(*{**OF_A_REQUEST, "answering": ("nvstreamd.engine.intake", "Intake.encoded")}[where],
                     RAISED["RuntimeError"])
    with pytest.raises(grpc.RpcError) as failed:
        tokenize(daemon, f"{SECRET} {where}")
    code, text = code_and_text(failed.value)
    assert code == grpc.StatusCode.INTERNAL and "RuntimeError" in text and SECRET not in text
    assert tokenize(daemon, "he") and daemon.engine("m").pid == pid


OF_A_THREAD = {
    "main: which pass": ("nvstreamd.engine.scheduler", "Scheduler.next_pass"),
    "main: the pass": ("nvstreamd.engine.runner", "Runner.run"),
    "main: a new request": ("nvstreamd.engine.scheduler", "Scheduler.add"),
    "main: after the pass": ("nvstreamd.engine.scheduler", "Scheduler.computed"),
    "main: what it says": ("nvstreamd.engine.report", "Stats"),
    "receive": ("nvstreamd.engine.channel", "Channel.receive"),
    "prepare": ("nvstreamd.engine.preparation.desk", "Desk.take"),
    "heart": ("nvstreamd.engine.heart", "Beat"),
    "read-ahead: a read": ("nvstreamd.weights.flow.mover", "Mover._reads"),
    "read-ahead: a segment": ("nvstreamd.weights.flow.mover", "Mover._complete"),
}


@pytest.mark.parametrize("where", OF_A_THREAD)
def test_a_thread_that_ends_takes_the_engine_with_it_and_streams_go_on(served: Sabotaged, where: str) -> None:
    daemon, before = served.daemon, served.daemon.engine("m")
    longer = ids_of(daemon, 40)
    stream, collected = daemon.open("m", PROMPT, max_tokens=40, ignore_eos=True, speculation=False), Collected()
    collected.take(next(stream))
    served.fail_once(*OF_A_THREAD[where], RAISED["KeyError"])
    # What comes, or goes, wakes whatever waits.
    beside = daemon.generate("m", SECRET, max_tokens=3, ignore_eos=True)
    tokens = tokenize(daemon, "the he")
    for event in stream:
        collected.take(event)
    assert collected.ids == longer and len(beside.ids) == 3 and tokens
    await_another(daemon, before)


def children(pid: int) -> list[int]:
    """The processes that this one started: proc(5)."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()]


def fork_server(daemon: Daemon) -> int:
    (found,) = children(daemon.engine("m").pid)
    return found


def worker(daemon: Daemon) -> int:
    """The one that is kept for what is cheap."""
    tokenize(daemon, "he")
    daemon.wait("the other workers to end", lambda: len(children(fork_server(daemon))) == 1)
    return children(fork_server(daemon))[0]


def test_a_worker_that_is_killed_costs_a_cheap_call_nothing(served: Sabotaged, expected: list[int]) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    victim = worker(daemon)
    # Whenever it comes to it, it does not answer.
    os.kill(victim, signal.SIGSTOP)
    call = daemon.inference.Tokenize.future(inference.TokenizeRequest(model="m", text="he"), timeout=DEADLINE)
    os.kill(victim, signal.SIGKILL)
    assert call.result().token_ids
    assert tokenize(daemon, "on") and ids_of(daemon) == expected and daemon.engine("m").pid == pid


@pytest.fixture
def stop() -> Iterator[Callable[[int], None]]:
    """Stops a process; it is killed at the test's end, since it hears of nobody's end any more."""
    stopped: list[int] = []

    def one(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield one
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_stopped_is_waited_for_no_longer_than_its_deadline(served: Sabotaged,
                                                                            stop: Callable[[int], None]) -> None:
    daemon, victim = served.daemon, worker(served.daemon)
    served.run(FIND + "loop.preparer.forks._answer_seconds = 0.5")
    os.kill(victim, signal.SIGKILL)
    # The next one has the shorter deadline.
    assert tokenize(daemon, "an")
    stop(stopped := worker(daemon))
    assert tokenize(daemon, "an on")
    assert worker(daemon) != stopped
    served.run(FIND + "loop.preparer.forks._answer_seconds = 90.0")
    assert tokenize(daemon, "on")


@pytest.mark.parametrize("ends", ["is killed", pytest.param("is stopped", marks=pytest.mark.slow)])
def test_an_engine_whose_fork_server_is_gone_is_replaced(served: Sabotaged, ends: str, stop: Callable[[int], None]
                                                         ) -> None:
    """It took no text any more, and no schema, until somebody loaded the model again."""
    daemon, before = served.daemon, served.daemon.engine("m")
    stop(server := fork_server(daemon))
    if ends == "is killed":
        os.kill(server, signal.SIGKILL)
    # More than the worker that is there is asked for.
    assert tokenize(daemon, "he " * 10_000 + ends)
    assert daemon.engine("m").pid != before.pid and daemon.engine("m").restarts == before.restarts + 1


def test_a_fork_that_fails_is_one_calls_failure_and_says_to_come_back(served: Sabotaged) -> None:
    daemon, server = served.daemon, fork_server(served.daemon)
    pid, limit = daemon.engine("m").pid, resource.prlimit(server, resource.RLIMIT_NOFILE)
    resource.prlimit(server, resource.RLIMIT_NOFILE, (1, limit[1]))
    text = "the " * 10_000
    with pytest.raises(grpc.RpcError) as failed:
        tokenize(daemon, text)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    resource.prlimit(server, resource.RLIMIT_NOFILE, limit)
    assert tokenize(daemon, text) and daemon.engine("m").pid == pid
