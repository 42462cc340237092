"""Does any error on any thread of an engine lose more than the one request that it is of?

Each path is taken once, in a real engine (support.sabotage): a request's own errors are that request's, a thread that
ends takes the engine with it, streams go on in the next one, and no engine is ever deaf.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from nvstream.v1.status_pb2 import EngineStatus
from support.daemon import DEADLINE, Collected, Daemon
from support.random_gguf import Options, tiny, write
from support.sabotage import Sabotaged, sabotaged

PROMPT = [5, 6, 7]
SECRET = "my secret words"
# Where the frames of the main thread keep what a sabotage wants.
FIND = """
import sys, threading
frame = sys._current_frames()[threading.main_thread().ident]
while frame.f_code.co_qualname != "Server.serve":
    frame = frame.f_back
server = frame.f_locals["self"]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sabotaged]:
    """A daemon with a small model whose layers are streamed. Engines may be replaced as often as tests want."""
    directory = tmp_path_factory.mktemp("faults")
    write(directory / "m.gguf", tiny(layers=4), Options())
    config = directory / "nvstreamd.toml"
    config.write_text(f'model_directories = ["{directory}"]\nengine_restarts = 100\n')
    with sabotaged(directory, "--config", str(config)) as made:
        facts = made.daemon.models.Get(models.GetRequest(model="m"), timeout=DEADLINE).model.facts
        made.daemon.load("m", facts.minimum_budget, kv_budget=8 << 20)
        assert made.daemon.engine("m").model.placement.streamed_bytes_per_pass
        yield made


@pytest.fixture(scope="module")
def expected(served: Sabotaged) -> list[int]:
    """What the model says after PROMPT."""
    return ids_of(served.daemon)


@pytest.fixture(autouse=True)
def all_is_well_afterwards(served: Sabotaged, expected: list[int]) -> Iterator[None]:
    """Every test leaves an engine that gives the same tokens and takes texts."""
    before = served.daemon.log.stat().st_size
    yield
    assert ids_of(served.daemon) == expected
    assert served.daemon.generate("m", "he", max_tokens=1).finished
    log = served.daemon.log.read_bytes()[before:].decode()
    assert SECRET not in log and "Traceback" not in log and all(len(line) < 2100 for line in log.splitlines())


def ids_of(daemon: Daemon, tokens: int = 8) -> list[int]:
    found = daemon.generate("m", PROMPT, max_tokens=tokens, ignore_eos=True)
    assert found.error is None, found.error
    return found.ids


def await_another(daemon: Daemon, before: EngineStatus) -> None:
    """Returns when the model is served by the engine after that."""
    daemon.wait("another engine", lambda: daemon.engine("m").pid not in (0, before.pid)
                and daemon.engine("m").model.state == models.MODEL_STATE_SERVING)
    assert daemon.engine("m").restarts == before.restarts + 1


def tokenize(daemon: Daemon, text: str) -> list[int]:
    request = inference.TokenizeRequest(model="m", text=text)
    return list(daemon.inference.Tokenize(request, timeout=DEADLINE).token_ids)


def code_and_text(error: grpc.RpcError | None) -> tuple[grpc.StatusCode, str]:
    assert error is not None
    return error.code(), str(error.details())


RAISED = {"MemoryError": "MemoryError", **{kind: f"{kind}({SECRET!r})" for kind in ("RuntimeError", "KeyError")}}
OF_A_REQUEST = {
    "drawing": ("nvstreamd.engine.sampling", "choose"),
    "accepting": ("nvstreamd.engine.delivery", "Delivery._accept"),
    "showing": ("nvstreamd.engine.output", "Output.push"),
    "ending": ("nvstreamd.engine.delivery", "usage_message"),
    "looking at it": ("nvstreamd.engine.prompts", "Prompts.questions"),
    "queueing its text": ("nvstreamd.engine.preparation.desk", "Desk.put"),
    "asking a worker": ("nvstreamd.engine.preparation.forks", "Worker.ask"),
    "remembering": ("nvstreamd.engine.preparation.remembered", "Remembered.find"),
    "making it a request": ("nvstreamd.engine.prompts", "Prompts.request"),
    "handing it over": ("nvstreamd.engine.server", "Server.ready"),
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


@pytest.mark.parametrize("where", ["looking at it", "queueing its text", "asking a worker", "remembering", "answering"])
def test_an_error_of_one_text_is_its_failure_alone(served: Sabotaged, where: str) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    served.fail_once(*{**OF_A_REQUEST, "answering": ("nvstreamd.engine.server", "Server.encoded")}[where],
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
    "main: what it says": ("nvstreamd.engine.server", "Stats"),
    "receive": ("nvstreamd.engine.channel", "Channel.receive"),
    "prepare": ("nvstreamd.engine.preparation.desk", "Desk.take"),
    "heart": ("nvstreamd.engine.heart", "Beat"),
    "read-ahead: a read": ("nvstreamd.weights.streamer", "Streamer._reads"),
    "read-ahead: a segment": ("nvstreamd.weights.streamer", "Streamer._complete"),
}


@pytest.mark.parametrize("where", OF_A_THREAD)
def test_a_thread_that_ends_takes_the_engine_with_it_and_streams_go_on(served: Sabotaged, where: str) -> None:
    daemon, before = served.daemon, served.daemon.engine("m")
    longer = ids_of(daemon, 40)
    stream, collected = daemon.open("m", PROMPT, max_tokens=40, ignore_eos=True), Collected()
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


def test_a_worker_that_is_stopped_is_waited_for_no_longer_than_its_deadline(served: Sabotaged) -> None:
    daemon, victim = served.daemon, worker(served.daemon)
    served.run(FIND + "server.preparer.forks._answer_seconds = 0.5")
    os.kill(victim, signal.SIGKILL)
    # The next one has the shorter deadline.
    assert tokenize(daemon, "an")
    os.kill(stopped := worker(daemon), signal.SIGSTOP)
    assert tokenize(daemon, "an on")
    assert worker(daemon) != stopped
    served.run(FIND + "server.preparer.forks._answer_seconds = 90.0")
    assert tokenize(daemon, "on")


@pytest.mark.parametrize("ends", ["is killed", pytest.param("is stopped", marks=pytest.mark.slow)])
def test_an_engine_whose_fork_server_is_gone_is_replaced(served: Sabotaged, ends: str) -> None:
    """It took no text any more, and no schema, until somebody loaded the model again."""
    daemon, before = served.daemon, served.daemon.engine("m")
    os.kill(fork_server(daemon), signal.SIGKILL if ends == "is killed" else signal.SIGSTOP)
    # More than the worker that is there is asked for.
    assert tokenize(daemon, "he " * 10_000)
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


# What an engine may say that was taken over. `the` is the id of a stream that is open.
PREAMBLE = FIND + """
import os, signal, struct
from nvstream.v1 import inference_pb2 as public, models_pb2 as models
from nvstreamd.wire.engine_pb2 import *
from nvstreamd.wire.frames import frame
the = next(iter(server.requests))
def say(data):
    with channel._sending:
        socket.sendall(data)
def report(**kind):
    say(frame(FromEngine(**kind).SerializeToString()))
"""
NONSENSE = {
    "no message": r"say(b'\0\0\0\4\xff\xff\xff\xff')",
    "an empty message": r"say(bytes(4))",
    "a message of 4 GiB": r"say(b'\xff\xff\xff\xff')",
    "loaded again": "report(loaded=Loaded())",
    "a description": "report(described=Described())",
    "progress of an import": "report(pack_progress=PackProgress())",
    "a wait that is no number": "report(queued=Queued(id=the, position=1, eta_seconds=float('nan')))",
    "an endless wait": "report(queued=Queued(id=the, position=1, eta_seconds=1e300))",
    "a pass since ever": "report(beat=Beat(pass_seconds=float('inf')))",
    "a pass before it began": "report(stats=Stats(pass_seconds=-1.0))",
    "ids of a text for a stream": "report(encoded=Encoded(id=the))",
    "a failure of everything": "report(failure=Failure(status='NO_SUCH', message='x' * 100_000))",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_engine_that_talks_nonsense_is_replaced_and_streams_go_on(served: Sabotaged, what: str) -> None:
    """It was a model FAILED for good, for everybody, until an administrator came."""
    daemon, before = served.daemon, served.daemon.engine("m")
    longer = ids_of(daemon, 400)
    stream, collected = daemon.open("m", PROMPT, max_tokens=400, ignore_eos=True), Collected()
    collected.take(next(stream))
    served.lay(PREAMBLE + NONSENSE[what])
    for event in stream:
        collected.take(event)
    assert collected.ids == longer
    await_another(daemon, before)


OF_THE_STREAM: dict[str, tuple[str, Callable[[Collected], bool]]] = {
    "a failure that there is not": (
        "report(failure=Failure(id=the, status='NO_SUCH', message='y' * 100_000, hint='z' * 100_000))",
        lambda found: code_and_text(found.error)[0] == grpc.StatusCode.INTERNAL
        and len(code_and_text(found.error)[1]) < 1300),
    "a failure of nobody": ("report(failure=Failure(id=1 << 60, status='NONE'))", lambda found: bool(found.finished)),
    "tokens of nobody": ("report(tokens=Tokens(id=1 << 60))", lambda found: bool(found.finished)),
    "the end of nobody": ("report(ended=Ended(id=1 << 60))", lambda found: bool(found.finished)),
    "ids of nobody": ("report(encoded=Encoded(id=1 << 60))", lambda found: bool(found.finished)),
    "more than anybody reads at once": (
        "report(tokens=Tokens(id=the, delta=public.Delta(text='x' * (1 << 20))))",
        # It is behind something unread or not, as it happens.
        lambda found: found.error is None or code_and_text(found.error)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("what", OF_THE_STREAM)
def test_what_an_engine_says_of_one_stream_harms_no_other(served: Sabotaged, what: str) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    said, holds = OF_THE_STREAM[what]
    stream, found = daemon.open("m", PROMPT, max_tokens=400, ignore_eos=True), Collected()
    found.take(next(stream))
    served.run(PREAMBLE + said)
    try:
        for event in stream:
            found.take(event)
    except grpc.RpcError as error:
        found.error = error
    assert holds(found), found.error
    assert daemon.engine("m").pid == pid


@pytest.mark.slow
def test_an_engine_that_closes_its_channel_and_stays_is_ended(served: Sabotaged) -> None:
    daemon, before = served.daemon, served.daemon.engine("m")
    served.lay("""
        import os, signal
        from socket import SHUT_WR
        with channel._sending:
            socket.shutdown(SHUT_WR)
            os.kill(os.getpid(), signal.SIGSTOP)
        """)
    assert daemon.generate("m", PROMPT, max_tokens=2).ids
    await_another(daemon, before)
    assert "closed its channel" in daemon.log.read_text()
