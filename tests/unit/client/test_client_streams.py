"""Do tokens reach a program whole, in order and only while it wants them?"""

from __future__ import annotations

import asyncio

import grpc
import pytest

import nvstream
from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.drivers import AsyncDriver, SyncDriver
from unit.client.peer import Failure, Forever, Gate, Peer

Driver = SyncDriver | AsyncDriver

TEXTS = ["Grüße", " ", "👩‍👩‍👧", "𝄞", "e\u0301", "", "\n", "\u2028", "\0", "语言", "🇩🇪", "end"]


def test_events_arrive_whole_and_in_order(driver: Driver, peer: Peer) -> None:
    peer.script(
        "Generate",
        samples.accepted(3),
        samples.progress(inference_pb2.PHASE_PREFILL, 5, 12),
        samples.delta("Hel", 1, 2),
        samples.delta("", 3),
        samples.delta("lo", 4),
        samples.finished("LENGTH"),
    )
    events = driver.collect(driver.call("generate", "m", "Hi"))
    assert events[0] == nvstream.Accepted("r1", 3, None)
    assert events[1] == nvstream.Progress(nvstream.Phase.PREFILL, 5, 12)
    assert [(one.token_ids, one.text) for one in events[2:5]] == [((1, 2), "Hel"), ((3,), ""), ((4,), "lo")]
    assert events[5].reason == nvstream.FinishReason.LENGTH
    assert events[5].stop_match is None
    usage = nvstream.Usage(12, 4, 30, 31, {nvstream.Tier.NVME: 3 << 20}, 0.5, 1.0, 10.0, 12, 9, caused_bytes=2 << 20)
    assert events[5].usage == usage
    assert len(events) == 6


def test_text_keeps_every_code_point_of_hundreds_of_deltas(driver: Driver, peer: Peer) -> None:
    deltas = [samples.delta(f"{index}{TEXTS[index % len(TEXTS)]}", index) for index in range(800)]
    peer.script("Generate", *deltas, samples.finished())
    assert driver.text(driver.call("generate", "m", "x")) == "".join(one.delta.text for one in deltas)


def test_text_includes_what_was_iterated_before(driver: Driver, peer: Peer) -> None:
    peer.script("Chat", samples.accepted(), samples.delta("a"), samples.delta("b"), samples.finished())
    stream = driver.call("chat", "m", [nvstream.Message("user", "x")])
    driver.next(stream)
    driver.next(stream)
    assert stream.received == "a"
    assert driver.text(stream) == "ab"
    assert stream.request_id == "r1"
    assert stream.finished.reason == nvstream.FinishReason.END


def test_a_token_is_handed_over_before_the_next_exists(driver: Driver, peer: Peer) -> None:
    gate = Gate()
    peer.script("Generate", samples.delta("one"), gate, samples.delta("two"), samples.finished())
    stream = driver.call("generate", "m", "x")
    assert driver.next(stream).text == "one"
    peer.open(gate)
    assert driver.text(stream) == "onetwo"


def test_logprobs_stay_with_their_tokens(driver: Driver, peer: Peer) -> None:
    top = [
        inference_pb2.TopLogprob(token_id=7, logprob=-0.5),
        inference_pb2.TopLogprob(token_id=8, logprob=-2),
    ]
    chosen = inference_pb2.TokenLogprob(token_id=7, logprob=-0.5, top=top)
    message = inference_pb2.StreamEvent(delta=inference_pb2.Delta(token_ids=[7], text="a", logprobs=[chosen]))
    peer.script("Generate", message, samples.finished())
    (found,) = driver.next(driver.call("generate", "m", "x", logprobs=2)).logprobs
    assert found == nvstream.TokenLogprob(7, -0.5, (nvstream.TopLogprob(7, -0.5), nvstream.TopLogprob(8, -2.0)))


def test_events_and_phases_of_a_newer_server_do_no_harm(driver: Driver, peer: Peer) -> None:
    newer = inference_pb2.StreamEvent(progress=inference_pb2.Progress(phase=99, done=1, total=2))  # type: ignore[arg-type]
    peer.script("Generate", inference_pb2.StreamEvent(), newer, samples.delta("a"), samples.finished())
    events = driver.collect(driver.call("generate", "m", "x"))
    assert events[0] == nvstream.Progress(nvstream.Phase.UNSPECIFIED, 1, 2)
    assert len(events) == 3


def test_a_stream_without_an_end_is_an_error_not_a_short_answer(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.delta("half an ans"))
    with pytest.raises(nvstream.Internal, match="ended"):
        driver.text(driver.call("generate", "m", "x"))


def test_an_error_after_tokens_keeps_the_tokens(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.delta("some"), Failure(grpc.StatusCode.UNAVAILABLE, "engine lost"))
    stream = driver.call("generate", "m", "x")
    for _ in range(2):
        with pytest.raises(nvstream.Unavailable, match="engine lost"):
            driver.text(stream)
    assert stream.received == "some"


def test_leaving_a_stream_cancels_it(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.delta("a"), Gate())
    driver.leave(driver.call("generate", "m", "x"))
    assert peer.saw_cancellation()


def test_dropping_a_stream_cancels_it(peer: Peer) -> None:
    peer.script("Generate", Forever(samples.delta("a")))
    with nvstream.Client(peer.path) as client:
        next(client.generate("m", "x"))
        assert peer.saw_cancellation()


def test_dropping_an_asyncio_stream_cancels_it(peer: Peer) -> None:
    peer.script("Generate", Forever(samples.delta("a")))

    async def go() -> bool:
        async with nvstream.AsyncClient(peer.path) as client:
            await anext(client.generate("m", "x"))
            return await asyncio.to_thread(peer.saw_cancellation)

    assert asyncio.run(go())


def test_reading_on_after_cancel_says_so(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.delta("a"), Gate())
    stream = driver.call("generate", "m", "x")
    driver.next(stream)
    stream.cancel()
    stream.cancel()
    for _ in range(2):
        with pytest.raises(nvstream.Cancelled):
            driver.collect(stream)
    assert peer.saw_cancellation()


def test_closing_the_client_cancels_its_streams(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.delta("a"), Gate())
    driver.next(driver.call("generate", "m", "x"))
    driver.call("close")
    assert peer.saw_cancellation()


def test_a_timeout_ends_the_call_here_and_there(driver: Driver, peer: Peer) -> None:
    peer.script("Generate", samples.accepted(), Gate())
    with pytest.raises(nvstream.DeadlineExceeded):
        driver.collect(driver.call("generate", "m", "x", timeout=0.3))
    assert peer.saw_cancellation()


def test_leaving_an_import_cancels_it(driver: Driver, peer: Peer) -> None:
    peer.script("Import", models_pb2.ImportResponse(progress=models_pb2.ImportProgress()), Gate())
    driver.leave(driver.call("import_model", "/x.gguf"))
    assert peer.saw_cancellation()


def test_cancelling_a_task_cancels_its_call_and_stays_a_cancellation(peer: Peer) -> None:
    peer.script("Generate", samples.delta("a"), Gate())

    async def go() -> None:
        async with nvstream.AsyncClient(peer.path) as client:
            first = asyncio.Event()

            async def read() -> None:
                async for _ in client.generate("m", "x"):
                    first.set()

            task = asyncio.create_task(read())
            await first.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(go())
    assert peer.saw_cancellation()
