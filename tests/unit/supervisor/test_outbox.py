"""Does a client that reads late get everything in order, and one that never reads an end?"""

from __future__ import annotations

import asyncio

import pytest

from nvstream.v1 import inference_pb2 as public
from nvstreamd.api.convert import event_message
from nvstreamd.errors import EngineLost, NotRead
from nvstreamd.supervisor.events import Delta, Event, Phase, Progress
from nvstreamd.supervisor.outbox import MOST_BYTES, MOST_EVENTS, Outbox
from support.calls import delta_of


def delta(token: int, text: str, logprobs: int = 0) -> Delta:
    top = [public.TopLogprob(token_id=n, logprob=-n) for n in range(logprobs)]
    details = [public.TokenLogprob(token_id=token, logprob=-1.0, top=top)] if logprobs else []
    return delta_of(public.Delta(token_ids=[token], text=text, logprobs=details))


def progress(done: int) -> Event:
    return Progress(Phase.PREFILL, done)


async def read(outbox: Outbox, count: int) -> list[Event]:
    return [await anext(outbox) for _ in range(count)]


def test_unread_deltas_become_one_and_what_is_between_them_stays_between_them() -> None:
    outbox = Outbox()
    for event in (progress(1), delta(1, "a", 2), delta(2, "b", 2), progress(2), delta(3, "c"), delta(4, "d")):
        assert outbox.put(event)
    first, text, between, rest = asyncio.run(read(outbox, 4))
    assert first == progress(1) and between == progress(2)
    assert list(text.token_ids) == [1, 2] and event_message(text).delta.text == "ab"
    assert [each.token_id for each in event_message(text).delta.logprobs] == [1, 2]
    assert list(rest.token_ids) == [3, 4] and rest.text == "cd"


def test_a_delta_that_was_taken_is_not_touched_any_more() -> None:
    outbox = Outbox()
    outbox.put(delta(1, "a"))
    (taken,) = asyncio.run(read(outbox, 1))
    outbox.put(delta(2, "b"))
    assert list(taken.token_ids) == [1]


@pytest.mark.thorough
def test_a_whole_context_of_text_may_be_unread() -> None:
    outbox = Outbox()
    assert all(outbox.put(delta(40_000 + n, "word ")) for n in range(32_768))
    (event,) = asyncio.run(read(outbox, 1))
    assert len(event.token_ids) == 32_768 and event.text == "word " * 32_768


def test_what_nobody_reads_ends_in_an_error_and_takes_no_more_room() -> None:
    outbox = Outbox()
    puts = 0
    while outbox.put(delta(1, "x" * 1000, 100)):
        puts += 1
        assert puts <= MOST_BYTES // 1000
    with pytest.raises(NotRead):
        asyncio.run(read(outbox, 1))


def test_of_progress_that_nobody_reads_the_last_is_kept() -> None:
    outbox = Outbox()
    assert all(outbox.put(progress(done)) for done in range(10 * MOST_EVENTS))
    assert asyncio.run(read(outbox, 1)) == [progress(10 * MOST_EVENTS - 1)]


def test_an_error_comes_behind_what_was_there_before() -> None:
    outbox = Outbox()
    outbox.put(delta(1, "a"))
    outbox.put(EngineLost("gone"))
    assert list(asyncio.run(read(outbox, 1))[0].token_ids) == [1]
    with pytest.raises(EngineLost):
        asyncio.run(read(outbox, 1))


def test_who_waits_is_woken() -> None:
    async def both() -> Event:
        outbox = Outbox()
        waiting = asyncio.create_task(read(outbox, 1))
        await asyncio.sleep(0)
        outbox.put(progress(7))
        return (await waiting)[0]

    assert asyncio.run(both()) == progress(7)
