"""Does a failed call say what went wrong, and what to do, as the daemon meant it?"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details

import nvstream
from nvstream.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from unit.client import samples
from unit.client.drivers import AsyncDriver, SyncDriver
from unit.client.peer import Failure, Gate, Peer
from unit.client.relay import Relay

Driver = SyncDriver | AsyncDriver
Code = grpc.StatusCode

CLASSES = [
    (Code.INVALID_ARGUMENT, nvstream.InvalidArgument),
    (Code.NOT_FOUND, nvstream.NotFound),
    (Code.PERMISSION_DENIED, nvstream.PermissionDenied),
    (Code.UNAUTHENTICATED, nvstream.PermissionDenied),
    (Code.RESOURCE_EXHAUSTED, nvstream.ResourceExhausted),
    (Code.FAILED_PRECONDITION, nvstream.FailedPrecondition),
    (Code.UNAVAILABLE, nvstream.Unavailable),
    (Code.DEADLINE_EXCEEDED, nvstream.DeadlineExceeded),
    (Code.CANCELLED, nvstream.Cancelled),
    (Code.ABORTED, nvstream.Aborted),
    (Code.INTERNAL, nvstream.Internal),
    (Code.UNIMPLEMENTED, nvstream.NvstreamError),
]


@pytest.mark.parametrize(("code", "kind"), CLASSES, ids=[code.name for code, _ in CLASSES])
def test_each_status_has_its_class_in_calls_and_streams(
    driver: Driver, peer: Peer, code: Code, kind: type[nvstream.NvstreamError]
) -> None:
    peer.script("Get", Failure(code, "why"))
    peer.script("Generate", Failure(code, "why"))
    with pytest.raises(nvstream.NvstreamError) as of_call:
        driver.call("model", "m")
    with pytest.raises(nvstream.NvstreamError) as of_stream:
        driver.text(driver.call("generate", "m", "x"))
    for caught in (of_call.value, of_stream.value):
        assert type(caught) is kind
        assert (caught.message, caught.status, caught.hint) == ("why", code.name, "")


def test_details_are_unpacked(driver: Driver, peer: Peer) -> None:
    field = details.BadRequest.FieldViolation(field="options.top_k", description="is too large")
    bad = details.BadRequest(field_violations=[field])
    info = details.ErrorInfo(metadata={"hint": "say less"})
    page = details.Help(links=[details.Help.Link(url="https://example.org/help")])
    peer.script("Get", Failure(Code.INVALID_ARGUMENT, "no", (bad, info, page, Duration(seconds=1))))
    with pytest.raises(nvstream.InvalidArgument) as caught:
        driver.call("model", "m")
    assert caught.value.violations == (nvstream.Violation("options.top_k", "is too large"),)
    assert caught.value.links == ("https://example.org/help",)
    assert str(caught.value) == "no (say less)"


def test_a_hint_inside_the_message_is_not_said_twice(driver: Driver, peer: Peer) -> None:
    info = details.ErrorInfo(metadata={"hint": "it must be from 0 to 1"})
    peer.script("Get", Failure(Code.INVALID_ARGUMENT, "top_p is 7.0 (it must be from 0 to 1)", (info,)))
    with pytest.raises(nvstream.InvalidArgument) as caught:
        driver.call("model", "m")
    assert caught.value.message == "top_p is 7.0"
    assert str(caught.value) == "top_p is 7.0 (it must be from 0 to 1)"


def test_quota_says_whose_and_when_to_come_back(driver: Driver, peer: Peer) -> None:
    quota = details.QuotaFailure(violations=[details.QuotaFailure.Violation(subject="uid:7", description="full")])
    retry = details.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    peer.script("Generate", Failure(Code.RESOURCE_EXHAUSTED, "no", (quota, retry)))
    with pytest.raises(nvstream.ResourceExhausted) as caught:
        driver.text(driver.call("generate", "m", "x"))
    assert caught.value.retry_after == 2.5
    assert caught.value.violations == (nvstream.Violation("uid:7", "full"),)


def test_preconditions_and_localised_messages(driver: Driver, peer: Peer) -> None:
    violation = details.PreconditionFailure.Violation(subject="budget", description="20 MiB at least")
    failed = details.PreconditionFailure(violations=[violation])
    local = details.LocalizedMessage(locale="de", message="zu klein")
    peer.script("Load", Failure(Code.FAILED_PRECONDITION, "too small", (failed, local)))
    with pytest.raises(nvstream.FailedPrecondition, match="zu klein") as caught:
        driver.call("load", "m", budget=1)
    assert caught.value.violations == (nvstream.Violation("budget", "20 MiB at least"),)


def test_details_that_contradict_the_status_do_not_hide_it(driver: Driver, peer: Peer) -> None:
    info = details.ErrorInfo(metadata={"hint": "trust me"})
    peer.script("Get", Failure(Code.NOT_FOUND, "no such model", (info,), claimed="something else"))
    with pytest.raises(nvstream.NotFound) as caught:
        driver.call("model", "m")
    assert (caught.value.message, caught.value.hint) == ("no such model", "")


def test_a_daemons_own_unavailable_keeps_its_words(driver: Driver, peer: Peer) -> None:
    info = details.ErrorInfo(metadata={"hint": "wait"})
    peer.script("Get", Failure(Code.UNAVAILABLE, "draining", (info,)))
    with pytest.raises(nvstream.Unavailable) as caught:
        driver.call("model", "m")
    assert (caught.value.message, caught.value.hint) == ("draining", "wait")


def test_a_missing_socket_says_where_and_what_to_do(driver: Driver, socket_dir: Path) -> None:
    for call in (lambda: driver.call("models"), lambda: driver.text(driver.call("generate", "m", "x"))):
        with pytest.raises(nvstream.Unavailable) as caught:
            call()
        assert caught.value.message == f"there is no socket at {socket_dir / 's'}"
        assert "start the daemon" in caught.value.hint


def test_a_socket_without_a_daemon_says_so(driver: Driver, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_dir / "s"))
    with pytest.raises(nvstream.Unavailable, match="nobody listens") as caught:
        driver.call("models")
    assert "start the daemon" in caught.value.hint


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(nvstream.InvalidArgument, match="too long"):
        nvstream.Client(tmp_path / ("x" * 120))


@pytest.mark.parametrize("kind", [SyncDriver, AsyncDriver], ids=["sync", "asyncio"])
def test_a_daemon_that_dies_mid_stream_is_unavailable_not_a_short_answer(
    kind: type[Driver], peer: Peer, socket_dir: Path
) -> None:
    relay = Relay(socket_dir / "r", peer.path)
    driver = kind(socket_dir / "r")
    peer.script("Generate", samples.delta("a"), Gate())
    stream = driver.call("generate", "m", "x")
    driver.next(stream)
    relay.cut()
    with pytest.raises(nvstream.Unavailable, match="broke") as caught:
        driver.text(stream)
    assert "ask again" in caught.value.hint
    assert stream.received == "a"
    driver.close()


def test_a_lost_generation_is_not_tried_again(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", Failure(Code.UNAVAILABLE, "lost"))
    with pytest.raises(nvstream.Unavailable):
        driver.text(driver.call("generate", "m", "x"))
    peer.request()
    assert peer.requests.empty()


def test_a_client_finds_a_daemon_that_starts_later(driver: Driver, socket_dir: Path) -> None:
    with pytest.raises(nvstream.Unavailable):
        driver.call("models")
    peer = Peer(socket_dir / "s")
    try:
        peer.script("GetStatus", samples.daemon())
        found = None
        while found is None:
            # Within gRPC's back-off of a tenth of a second the old refusal is repeated.
            try:
                found = driver.call("status")
            except nvstream.Unavailable:
                continue
        assert found.version == "0.1.0"
    finally:
        peer.close()


def test_paths_that_a_uri_would_misread(socket_dir: Path) -> None:
    path = socket_dir / "a b#c?%20ü"
    peer = Peer(socket_dir / "s")
    try:
        (socket_dir / "s").rename(path)
        peer.script("GetStatus", samples.daemon())
        with nvstream.Client(path) as client:
            assert client.status().version == "0.1.0"
    finally:
        peer.close()


def test_a_request_that_is_too_large_will_be_that_tomorrow_too(driver: Driver, socket_dir: Path) -> None:
    """gRPC tells it as it tells a queue that is full, which a program waits for."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 1000)])
    server.add_insecure_port(f"unix:{socket_dir / 's'}")
    add_InferenceServicer_to_server(InferenceServicer(), server)
    server.start()
    try:
        with pytest.raises(nvstream.InvalidArgument, match="1000") as caught:
            driver.text(driver.call("generate", "m", "x" * 2000))
        assert caught.value.violations[0].subject == "request"
    finally:
        server.stop(None)


def test_what_the_daemon_would_not_take_is_not_even_sent(driver: Driver, peer: Peer) -> None:
    with pytest.raises(nvstream.InvalidArgument, match=str(16 << 20)) as caught:
        driver.text(driver.call("generate", "m", "x" * (17 << 20)))
    assert caught.value.violations[0].subject == "request"
    assert peer.requests.empty()
