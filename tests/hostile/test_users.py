"""Can one user of a real daemon stop another, by accident or on purpose? The attacks of bench-hostile, once each."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from support.as_user import may_become_others, other
from support.daemon import DEADLINE, Collected, Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20
MODEL = SMOLLM2.stem
QUIET, HOSTILE = 30_001, 30_002
several_users = pytest.mark.skipif(not may_become_others(), reason="NOT TESTED: several users; only root can be them")


@contextmanager
def daemon(settings: str = "") -> Iterator[Daemon]:
    """A daemon with the real model, in a place that everybody reaches."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        config = directory / "nvstreamd.toml"
        config.write_text(f'model_directories = ["{SMOLLM2.parent}"]\n{settings}')
        with running(directory, "--config", str(config)) as started:
            started.load(MODEL, 200 * MIB)
            yield started


@pytest.fixture(scope="module")
def served() -> Iterator[Daemon]:
    quotas = (f'[[quotas]]\nuser = "{QUIET + 100}"\ntokens_per_day = 20\n'
              f'[[quotas]]\nuser = "{QUIET + 101}"\nlongest_context = 50\nrequests = 1\n')
    with daemon("drain_seconds = 2\n" + quotas) as started:
        yield started


def short(served: Daemon, uid: int = QUIET, **arguments: object) -> list[dict[str, Any]]:
    """Short requests of a user."""
    with other(uid, "short_request", socket=str(served.socket), model=MODEL, **arguments) as user:
        found: Any = user.result()
    return found


def answers(served: Daemon) -> None:
    """Holds that the daemon answers as ever."""
    assert served.generate(MODEL, "The capital of France is", max_tokens=1).text == " Paris"


@several_users
def test_who_takes_every_place_leaves_others_theirs(served: Daemon) -> None:
    with other(HOSTILE, "place_flood", socket=str(served.socket), model=MODEL, streams=200, prompt=50) as flood:
        flood.wait_ready()
        assert not any(each["error"] for each in short(served, times=5))
        shares = {share.uid: share for share in served.status().shares}
        assert 30 <= shares[HOSTILE].requests < 200 and shares[HOSTILE].open_calls == shares[HOSTILE].requests
        flood.tell()
        assert flood.result() == shares[HOSTILE].requests
    served.wait("the places to be free", lambda: served.engine(MODEL).running == 0)


@several_users
def test_a_short_request_does_not_wait_behind_sixty_long_ones(served: Daemon) -> None:
    with other(HOSTILE, "place_flood", socket=str(served.socket), model=MODEL, streams=36, prompt=7000) as flood:
        flood.wait_ready()
        passes = sorted(each["passes"] for each in short(served, times=9))
        assert passes[len(passes) // 2] <= 4
        flood.tell()
        flood.result()
    served.wait("the places to be free", lambda: served.engine(MODEL).running == 0)


@several_users
def test_a_users_share_is_his_to_see_and_nobody_elses(served: Daemon) -> None:
    with other(QUIET, "shares_seen", socket=str(served.socket)) as user:
        assert user.result() == [QUIET]
    seen = {share.uid for share in served.status().shares}
    assert os.getuid() in seen and QUIET in seen


@several_users
def test_a_daily_quota_refuses_saying_which_and_until_when(served: Daemon) -> None:
    first, second = (short(served, uid=QUIET + 100, tokens=20)[0] for _ in range(2))
    assert not first["error"] and len(first["ids"]) == 20
    assert second["error"].startswith("RESOURCE_EXHAUSTED") and "tokens today" in second["error"]
    assert "UTC" in second["error"]


@several_users
def test_a_quota_of_context_is_kept(served: Daemon) -> None:
    assert not short(served, uid=QUIET + 101, prompt="word " * 40)[0]["error"]
    refused = short(served, uid=QUIET + 101, prompt="word " * 60)[0]["error"]
    assert refused.startswith("INVALID_ARGUMENT") and "50" in refused


HUGE: list[inference.ChatRequest] = [
    inference.ChatRequest(model=MODEL, messages=[inference.ChatMessage(role="\0" * (12 << 20), content="x")]),
    inference.ChatRequest(model=MODEL, messages=[inference.ChatMessage(role="user", content="\0" * (12 << 20))]),
    inference.ChatRequest(model=MODEL, messages=[inference.ChatMessage(role="user", content="x")] * 100_000),
    inference.ChatRequest(model="m" * (12 << 20), messages=[inference.ChatMessage(role="user", content="x")]),
    inference.ChatRequest(model=MODEL, messages=[inference.ChatMessage(role="user", content="x")],
                          options=inference.Options(stop=["\0"] * (1 << 20))),
]


@pytest.mark.parametrize("request_", HUGE, ids=["role", "content", "messages", "model", "stop"])
def test_a_huge_field_is_that_calls_failure_and_no_more(served: Daemon, request_: inference.ChatRequest) -> None:
    pid, logged = served.engine(MODEL).pid, served.log.stat().st_size
    with grpc.insecure_channel(f"unix:{served.socket}", options=[("grpc.max_send_message_length", -1)]) as channel:
        from nvstream.v1.inference_pb2_grpc import InferenceStub

        with pytest.raises(grpc.RpcError) as refused:
            list(InferenceStub(channel).Chat(request_, timeout=DEADLINE))
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert len(refused.value.details()) < 2000 and "\0" not in refused.value.details()
    answers(served)
    assert served.engine(MODEL).pid == pid
    assert served.log.stat().st_size - logged < 10_000


def test_a_text_that_needs_too_much_memory_costs_a_worker_and_no_engine(served: Daemon) -> None:
    engine = served.engine(MODEL)
    with grpc.insecure_channel(f"unix:{served.socket}", options=[("grpc.max_send_message_length", -1)]) as channel:
        from nvstream.v1.inference_pb2_grpc import InferenceStub

        with pytest.raises(grpc.RpcError) as refused:
            InferenceStub(channel).Tokenize(inference.TokenizeRequest(model=MODEL, text="🦜" * (3 << 19)),
                                            timeout=DEADLINE)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "parts" in refused.value.details()
    answers(served)
    assert served.engine(MODEL).pid == engine.pid and served.engine(MODEL).restarts == engine.restarts


@pytest.mark.slow
def test_a_request_that_kills_engines_is_failed_and_the_others_never_notice() -> None:
    with daemon() as served:
        prompts = [f"{number} quiet users:" for number in range(3)]
        alone = [served.generate(MODEL, prompt, max_tokens=150, ignore_eos=True, speculation=False).ids
                 for prompt in prompts]
        poison = "word " * 4000
        beside: list[Collected] = []
        others = threading.Thread(target=lambda: beside.extend(
            served.generate_all(MODEL, prompts, max_tokens=150, ignore_eos=True, speculation=False)))
        others.start()
        served.wait("the others to run", lambda: served.engine(MODEL).running == len(prompts))
        killed: set[int] = set()
        with pytest.raises(grpc.RpcError) as failed:
            # Long enough that an engine of its own, however fast, is within the prompt when its first chunk is told.
            for event in served.open(MODEL, poison, max_tokens=5):
                engine = served.engine(MODEL)
                within = event.HasField("progress") and event.progress.phase == inference.PHASE_PREFILL
                if within and engine.running and engine.pid not in killed:
                    killed.add(engine.pid)
                    os.kill(engine.pid, signal.SIGKILL)
        others.join()
        assert failed.value.code() == grpc.StatusCode.ABORTED
        assert [stream.ids for stream in beside] == alone
        assert served.engine(MODEL).restarts == 3
        again = served.generate(MODEL, poison, max_tokens=5)
        assert again.error is not None and again.error.code() == grpc.StatusCode.ABORTED


@pytest.mark.slow
def test_a_frozen_engine_is_noticed_replaced_and_its_streams_go_on() -> None:
    with daemon() as served:
        whole = served.generate(MODEL, "Count:", max_tokens=300, ignore_eos=True, speculation=False).ids
        stream = served.open(MODEL, "Count:", max_tokens=300, ignore_eos=True, speculation=False)
        collected = Collected()
        while not collected.ids:
            collected.take(next(stream))
        pid = served.engine(MODEL).pid
        os.kill(pid, signal.SIGSTOP)
        served.wait("status to say so", lambda: served.engine(MODEL).stall)
        for event in stream:
            collected.take(event)
        assert collected.ids == whole
        assert served.engine(MODEL).pid != pid and not served.engine(MODEL).stall


@several_users
@pytest.mark.slow
def test_clients_that_do_not_read_hold_up_no_end() -> None:
    with daemon("drain_seconds = 1\n") as served:
        arguments = {"socket": str(served.socket), "model": MODEL}
        with (other(HOSTILE, "suspended_stream", **arguments) as suspended,
              other(HOSTILE, "unread_streams", **arguments, streams=4, tokens=8000, logprobs=20) as unread):
            for each in (suspended, unread):
                each.wait_ready()
                each.process.send_signal(signal.SIGSTOP)
            served.process.send_signal(signal.SIGTERM)
            # Ten seconds, of which drain is one, on any machine: it took thirty whatever the drain was.
            assert served.process.wait(timeout=15) == 0


@several_users
@pytest.mark.slow
def test_what_hostile_clients_sent_is_given_back(served: Daemon) -> None:
    def resident() -> int:
        lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10

    before = resident()
    address = str(served.socket)
    with other(HOSTILE, "large_calls", socket=address, model=MODEL, calls=8, size=16 * MIB) as hostile:
        hostile.result()
    with other(HOSTILE, "idle_connections", socket=address, connections=500) as hostile:
        hostile.wait_ready()
        hostile.tell()
        assert 100 < int(str(hostile.result())) <= 128
    served.wait("the memory to come back", lambda: resident() - before <= 64 * MIB)
    share = next(share for share in served.status().shares if share.uid == os.getuid())
    assert share.open_calls == 1 and share.request_bytes < 1024


def test_a_ceiling_that_is_none_is_said(tmp_path: Path) -> None:
    with running(tmp_path, "--memory", "500GiB", "--model-directory", str(SMOLLM2.parent)) as served:
        assert any("512000 MiB" in note for note in served.status().notes)
        assert served.load(MODEL, 200 * MIB).state == models.MODEL_STATE_SERVING
