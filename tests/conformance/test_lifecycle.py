"""Does the daemon stay up and truthful while models come, fail, wait in the queue and go?"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from nvstream.v1.status_pb2 import GetStatusRequest
from nvstream.v1.status_pb2_grpc import StatusStub
from support.daemon import DEADLINE, Collected, Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20
NOBODY = 65534


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves one request at a time and lets two more wait."""
    directory = tmp_path_factory.mktemp("narrow")
    config = directory / "nvstreamd.toml"
    config.write_text(f'max_running = 1\nmax_queued = 2\nmodel_directories = ["{SMOLLM2.parent}"]\n')
    with running(directory, "--config", str(config)) as daemon:
        daemon.load(SMOLLM2.stem, 200 * MIB)
        yield daemon


def listed(daemon: Daemon, name: str) -> models.Model:
    found = daemon.models.List(models.ListRequest(), timeout=DEADLINE).models
    return next(model for model in found if model.name == name)


def test_a_queued_stream_hears_of_its_place(narrow: Daemon, name: str) -> None:
    # The first goes on until the others have been told their places.
    streams = [narrow.open(name, f"{number} is", max_tokens=4 if number else 4000, ignore_eos=True, speculation=False)
               for number in range(3)]
    firsts = [next(stream).accepted for stream in streams]
    assert [first.queue_position for first in firsts] == [0, 1, 2]
    # By its third token a pass has been timed, which an estimate is made of.
    for _ in range(3):
        while not next(streams[0]).HasField("delta"):
            pass
    streams[0].cancel()
    events = [event.progress for event in streams[2] if event.HasField("progress")]
    queued = [event for event in events if event.phase == inference.PHASE_QUEUED]
    assert [(event.done, event.total) for event in queued] == [(1, 2)]
    assert queued[0].HasField("eta")
    assert list(streams[1])[-1].finished.usage.completion_tokens == 4


def test_a_full_queue_is_said_with_when_to_come_back(narrow: Daemon, name: str) -> None:
    streams = [narrow.open(name, "Count: 1 2 3", max_tokens=4000, ignore_eos=True, speculation=False) for _ in range(3)]
    for stream in streams:
        next(stream)
    late = narrow.generate(name, "x", max_tokens=1)
    assert late.error is not None and late.error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {"QuotaFailure", "RetryInfo"} <= late.details().keys()
    # One that waits may leave, and makes room; its slot never came.
    streams[1].cancel()
    narrow.wait("the queue to have room", lambda: narrow.engine(name).queued == 1)
    streams[0].cancel()
    assert any(event.HasField("delta") for event in streams[2])
    streams[2].cancel()
    narrow.wait("the slots to be free", lambda: narrow.engine(name).running == 0)


def test_a_deadline_is_kept_in_the_queue(narrow: Daemon, name: str) -> None:
    first = narrow.open(name, "Count: 1 2 3", max_tokens=4000, ignore_eos=True, speculation=False)
    next(first)
    waiting = narrow.generate(name, "x", timeout=1.0, max_tokens=1)
    assert waiting.error is not None and waiting.error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    narrow.wait("the queue to be empty", lambda: narrow.engine(name).queued == 0)
    first.cancel()


def test_a_stream_may_come_before_its_model(tmp_path: Path, name: str) -> None:
    """Generate during Load waits and says so, instead of failing or hanging."""
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        loading = threading.Thread(target=daemon.load, args=(name, 60 * MIB))
        loading.start()
        daemon.wait("the model to load", lambda: listed(daemon, name).state == models.MODEL_STATE_LOADING)
        early = daemon.generate(name, "The capital of France is", max_tokens=1)
        tokenised = daemon.inference.Tokenize(inference.TokenizeRequest(model=name, text="Paris"), timeout=DEADLINE)
        loading.join()
    assert early.events[0].progress.phase == inference.PHASE_LOADING
    assert early.text == " Paris" and list(tokenised.token_ids)


def test_a_load_goes_on_when_its_caller_leaves(tmp_path: Path, name: str) -> None:
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        call = daemon.models.Load.future(models.LoadRequest(model=name, budget=60 * MIB))
        daemon.wait("the model to load", lambda: listed(daemon, name).state == models.MODEL_STATE_LOADING)
        call.cancel()
        daemon.wait("the model to serve", lambda: listed(daemon, name).state == models.MODEL_STATE_SERVING)
        assert daemon.generate(name, "The capital of France is", max_tokens=1).text == " Paris"


def test_an_unload_ends_a_load(tmp_path: Path, name: str) -> None:
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        call = daemon.models.Load.future(models.LoadRequest(model=name, budget=60 * MIB))
        daemon.wait("the model to load", lambda: listed(daemon, name).state == models.MODEL_STATE_LOADING)
        daemon.unload(name)
        assert call.code() == grpc.StatusCode.FAILED_PRECONDITION and "unloaded" in str(call.details())
        assert listed(daemon, name).state == models.MODEL_STATE_UNLOADED
        assert daemon.load(name, 60 * MIB).state == models.MODEL_STATE_SERVING


def test_one_broken_model_does_not_keep_the_others_away(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(SMOLLM2.read_bytes()[: 1 << 20])
    arguments = ["--model", f"broken={broken}", "--model", f"good={SMOLLM2}"]
    with running(tmp_path / "daemon", "--memory", "60MiB", *arguments) as daemon:
        daemon.wait("the good model", lambda: listed(daemon, "good").state == models.MODEL_STATE_SERVING)
        failed = listed(daemon, "broken")
        assert failed.state == models.MODEL_STATE_FAILED and str(broken) in failed.error
        refused = daemon.generate("broken", "x")
        assert refused.error is not None and refused.error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert daemon.generate("good", "The capital of France is", max_tokens=1).text == " Paris"


def test_a_model_whose_engines_keep_dying_refuses_for_a_while_and_comes_back(tmp_path: Path, name: str) -> None:
    config = tmp_path / "nvstreamd.toml"
    config.write_text(f'engine_restarts = 1\nmodel_directories = ["{SMOLLM2.parent}"]\n')
    with running(tmp_path, "--config", str(config)) as daemon:
        daemon.load(name, 60 * MIB)
        stream = daemon.open(name, "word " * 400, max_tokens=1)
        collected = Collected()
        collected.take(next(stream))
        for _ in range(2):
            pid = daemon.engine(name).pid
            os.kill(pid, signal.SIGKILL)
            daemon.wait("the engine to be gone", lambda pid=pid: daemon.engine(name).pid != pid)
        with pytest.raises(grpc.RpcError) as failed:
            for event in stream:
                collected.take(event)
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE and "SIGKILL" in failed.value.details()
        collected.error = failed.value
        assert "RetryInfo" in collected.details()
        daemon.wait("the model to serve", lambda: listed(daemon, name).state == models.MODEL_STATE_SERVING)
        assert daemon.generate(name, "The capital of France is", max_tokens=1).text == " Paris"


def test_a_draining_daemon_says_so(tmp_path: Path, name: str) -> None:
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        daemon.load(name, 200 * MIB)
        stream = daemon.open(name, "Count: 1 2 3", max_tokens=4000, ignore_eos=True, speculation=False)
        next(stream)
        daemon.process.send_signal(signal.SIGTERM)
        status = StatusStub(daemon.channel)
        daemon.wait("draining", lambda: status.GetStatus(GetStatusRequest(), timeout=DEADLINE).draining)
        late = daemon.generate(name, "x", max_tokens=1)
        assert late.error is not None and late.error.code() == grpc.StatusCode.UNAVAILABLE
        stream.cancel()
        assert daemon.process.wait(timeout=DEADLINE) == 0


def test_no_model_begins_to_load_in_a_daemon_that_ends(tmp_path: Path) -> None:
    """What its engine takes, a drive too, was nobody's to give back."""
    config = tmp_path / "nvstreamd.toml"
    entries = [f'[[models]]\nname = "m{number}"\npath = "{SMOLLM2}"\nbudget = "100MiB"\nkv_budget = "20MiB"\n'
               for number in range(3)]
    config.write_text("drain_seconds = 0\n" + "".join(entries))
    with running(tmp_path, "--config", str(config)) as daemon:
        daemon.wait("the first to load", lambda: "m0: MODEL_STATE_LOADING" in daemon.log.read_text())
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(DEADLINE) == 0
    ended = daemon.log.read_text().partition("draining")[2]
    assert "m0: MODEL_STATE_UNLOADED" in ended
    assert "LOADING" not in ended and "is not served" not in ended


def test_bytes_that_are_no_request_are_refused_as_such(smollm2: Daemon) -> None:
    """Field 1 is a string; 0xff is no UTF-8."""
    for method in ("Inference/Generate", "Inference/Tokenize", "Models/Get"):
        path = f"/nvstream.v1.{method}"
        call = smollm2.channel.unary_stream(path, request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.RpcError) as refused:
            list(call(b"\x0a\x02\xff\xfe", timeout=DEADLINE))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "UTF-8" in refused.value.details()


def nobody_can_run_python() -> bool:
    """Whether another user reaches this interpreter and this tree."""
    pid = os.fork()
    if pid == 0:
        os.setuid(NOBODY)
        import sys
        os._exit(0 if os.access(sys.executable, os.X_OK) and os.access(sys.prefix, os.R_OK) else 1)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(os.getuid() != 0 or not nobody_can_run_python(),
                    reason="NOT TESTED: the engine as another user; needs root and a Python that others may execute")
def test_the_engine_runs_as_the_user_that_is_named(tmp_path: Path, name: str) -> None:
    config = tmp_path / "nvstreamd.toml"
    config.write_text(f'engine_user = "nobody"\nmodel_directories = ["{SMOLLM2.parent}"]\n')
    with running(tmp_path, "--config", str(config)) as daemon:
        daemon.load(name, 60 * MIB)
        status = dict(line.split(":", 1) for line in
                      Path(f"/proc/{daemon.engine(name).pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()) == {str(NOBODY)} and set(status["Gid"].split()) == {str(NOBODY)}
        assert status["Groups"].strip() in ("", str(NOBODY)) and int(status["CapEff"], 16) == 0
        assert daemon.generate(name, "The capital of France is", max_tokens=1).text == " Paris"
