"""Does everybody hear how models are, whatever another client does with what it is told?"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from nvstreamd.api.guard import MOST_STREAMING
from support.daemon import DEADLINE, Daemon, running
from support.http2 import Connection, call_frames, headers, message

HOLD = "/grpc.health.v1.Health/Watch"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="nvs") as name, running(Path(name)) as started:
        yield started


def test_a_watcher_that_takes_no_byte_keeps_nobody_from_hearing_and_the_daemon_from_ending(daemon: Daemon) -> None:
    """It took the daemon its life: only SIGKILL ended it, and its streams with it."""
    with Connection(daemon.socket, DEADLINE) as deaf:
        deaf.open(initial_window_size=0)
        deaf.send(call_frames(HOLD, message(b"")))
        watch = HealthStub(daemon.channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        daemon.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert daemon.process.wait(DEADLINE) == 0
    assert "calls are cut off" not in daemon.log.read_text(), "who only watches was waited for"


def test_what_nobody_serves_is_not_found(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        HealthStub(daemon.channel).Check(health_pb2.HealthCheckRequest(service="no-such-model"), timeout=DEADLINE)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_one_user_has_few_reflection_calls_open(daemon: Daemon) -> None:
    """Each may bring 18 MiB that no share is charged for: 256 of them were more than the daemon may have."""
    stub = ServerReflectionStub(daemon.channel)
    asks = reflection_pb2.ServerReflectionRequest(list_services="")
    with ExitStack() as held:
        for _ in range(MOST_STREAMING):
            connection = held.enter_context(Connection(daemon.socket, DEADLINE))
            connection.open(initial_window_size=1 << 16)
            connection.send(headers("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"))
        daemon.wait("those calls", lambda: daemon.status().shares[0].open_calls == MOST_STREAMING + 1)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([asks]), timeout=DEADLINE))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    daemon.wait("their end", lambda: daemon.status().shares[0].open_calls == 1)
    (answer,) = stub.ServerReflectionInfo(iter([asks]), timeout=DEADLINE)
    assert "nvstream.v1.Inference" in [service.name for service in answer.list_services_response.service]
