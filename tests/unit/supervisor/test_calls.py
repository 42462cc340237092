"""Is the call that kills engines found, alone, and are the others never taken for it?"""

from __future__ import annotations

import asyncio

import pytest

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError, PoisonedRequest
from nvstreamd.supervisor.calls import Calls
from nvstreamd.supervisor.stream import Stream
from nvstreamd.supervisor.suspicion import PATIENCE_SECONDS
from nvstreamd.wire.engine_pb2 import Encoded, Ended, Prefilled, Queued, Tokens
from support.calls import encode_order, report, run_order

CHUNK = 64


def made() -> tuple[Calls, list[int]]:
    left: list[int] = []
    return Calls("model", CHUNK, left.append), left


def opened(calls: Calls, text: str, uid: int = 1) -> Stream:
    return calls.open(run_order(uid, text), lambda tokens: None)


def handed(calls: Calls) -> list[int]:
    """The numbers of the calls that an engine is given now."""
    return [command.number for command in calls.to_hand_over()]


def token(calls: Calls, stream: Stream) -> None:
    calls.take(report(tokens=Tokens(id=stream.number, delta=public.Delta(token_ids=[7], text="x"))))


def error_of(stream: Stream) -> NvstreamError | None:
    """What a stream ended by, None while it goes on."""

    async def last() -> None:
        while True:
            async with asyncio.timeout(0):
                await anext(stream.events)

    try:
        asyncio.run(last())
    except NvstreamError as error:
        return error
    except TimeoutError:
        return None


def test_a_suspect_is_tried_when_the_engine_has_nothing_else_and_then_alone() -> None:
    calls, _ = made()
    poison, quiet = opened(calls, "poison"), opened(calls, "quiet")
    for _ in range(2):
        assert set(handed(calls)) == {poison.number, quiet.number}
        token(calls, quiet)
        calls.engine_lost(by_itself=True)
    assert handed(calls) == [quiet.number]
    late = opened(calls, "late")
    assert handed(calls) == [late.number]
    for each in (quiet, late):
        calls.take(report(ended=Ended(id=each.number, finished=public.Finished())))
    assert handed(calls) == [poison.number]
    later = opened(calls, "later")
    assert handed(calls) == []
    calls.engine_lost(by_itself=True)
    assert isinstance(error_of(poison), PoisonedRequest)
    assert handed(calls) == [later.number]
    with pytest.raises(PoisonedRequest):
        opened(calls, "poison")
    # Somebody else may ask the same: it may have been something else that killed.
    opened(calls, "poison", uid=2)


def test_a_suspect_that_gets_a_token_is_one_like_all_others() -> None:
    calls, _ = made()
    stream = opened(calls, "long")
    for _ in range(2):
        handed(calls)
        calls.engine_lost(by_itself=True)
    assert handed(calls) == [stream.number]
    other = opened(calls, "other")
    token(calls, stream)
    assert handed(calls) == [other.number]
    calls.engine_lost(by_itself=True)
    assert set(handed(calls)) == {stream.number, other.number}


def test_a_prompt_clears_itself_only_by_getting_clearly_further() -> None:
    calls, _ = made()
    stream = opened(calls, "prompt")
    other = opened(calls, "other")
    for done in (CHUNK, 2 * CHUNK):
        handed(calls)
        token(calls, other)
        calls.take(report(prefilled=Prefilled(id=stream.number, done=done, total=5000)))
        calls.engine_lost(by_itself=True)
    assert handed(calls) == [other.number]
    calls.take(report(ended=Ended(id=other.number, finished=public.Finished())))
    handed(calls)
    calls.take(report(prefilled=Prefilled(id=stream.number, done=5 * CHUNK, total=5000)))
    calls.engine_lost(by_itself=True)
    assert error_of(stream) is None


def test_who_waited_in_the_queue_and_who_was_ended_on_purpose_is_no_suspect() -> None:
    calls, _ = made()
    streams = [opened(calls, str(number)) for number in range(3)]
    for _ in range(4):
        assert len(handed(calls)) == 3
        for stream in streams:
            calls.take(report(queued=Queued(id=stream.number, position=2)))
        calls.engine_lost(by_itself=True)
    assert len(handed(calls)) == 3
    for _ in range(4):
        calls.engine_lost(by_itself=False)
        assert len(handed(calls)) == 3


def test_a_suspect_does_not_wait_for_ever_for_a_quiet_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _ = made()
    suspect, quiet = opened(calls, "suspect"), opened(calls, "quiet")
    for _ in range(2):
        handed(calls)
        token(calls, quiet)
        calls.engine_lost(by_itself=True)
    handed(calls)
    calls.give_up_suspects()
    assert error_of(suspect) is None
    for record in calls._records.values():
        assert record.since is not None
        record.since -= PATIENCE_SECONDS + 1
    calls.give_up_suspects()
    assert isinstance(error_of(suspect), PoisonedRequest) and error_of(quiet) is None


def test_a_text_that_kills_is_found_too_and_its_waiter_hears_of_it() -> None:
    async def run() -> None:
        calls, _ = made()
        encoding = calls.open_encoding(encode_order(1, "poison"))
        for _ in range(3):
            handed(calls)
            calls.engine_lost(by_itself=True)
        with pytest.raises(PoisonedRequest):
            await encoding.answer
        good = calls.open_encoding(encode_order(1, "good"))
        handed(calls)
        calls.take(report(encoded=Encoded(id=good.number, response=public.TokenizeResponse(token_ids=[1]))))
        assert (await good.answer).response == public.TokenizeResponse(token_ids=[1])

    asyncio.run(run())


def test_a_stream_that_nobody_reads_is_ended_and_the_engine_told() -> None:
    calls, left = made()
    stream = opened(calls, "unread")
    handed(calls)
    details = [public.TokenLogprob(token_id=1, top=[public.TopLogprob(token_id=n) for n in range(100)])]
    while stream.number in calls.streams:
        calls.take(report(tokens=Tokens(id=stream.number, delta=public.Delta(
            token_ids=[1], text="x", logprobs=details))))
    assert left == [stream.number]
    error = error_of(stream)
    assert error is not None and error.status == "RESOURCE_EXHAUSTED"


def test_tokens_are_charged_once_whatever_engines_die() -> None:
    calls, _ = made()
    charged: list[int] = []
    stream = calls.open(run_order(1, "x"), charged.append)
    for _ in range(2):
        handed(calls)
        calls.take(report(queued=Queued(id=stream.number, position=0, prompt_tokens=10)))
        token(calls, stream)
        calls.engine_lost(by_itself=True)
    assert charged == [10, 1, 1]
