"""What does a client get that did not read for a while? All of its tokens, or an error that says so; no less."""

from __future__ import annotations

import asyncio

import pytest

from nvstream.v1 import inference_pb2 as public
from nvstreamd.api.convert import event_message
from nvstreamd.errors import NotRead
from nvstreamd.supervisor.events import Delta, Event, Phase, Progress
from nvstreamd.supervisor.outbox import MOST_BYTES, MOST_EVENTS, Outbox
from support.calls import delta_of


def delta(token: int, text: str = "é") -> Delta:
    logprob = public.TokenLogprob(token_id=token, logprob=-1.0, top=[public.TopLogprob(token_id=token, logprob=-1.0)])
    return delta_of(public.Delta(token_ids=[token], text=text, logprobs=[logprob]))


def prefill(done: int) -> Event:
    return Progress(Phase.PREFILL, done, 1 << 20)


def unread(outbox: Outbox, events: int) -> list[Event]:
    async def read() -> list[Event]:
        return [await anext(outbox) for _ in range(events)]

    return asyncio.run(asyncio.wait_for(read(), 10))


def test_unread_tokens_become_one_delta_with_everything_that_belongs_to_them() -> None:
    outbox = Outbox()
    assert all(outbox.put(delta(token)) for token in range(2 * MOST_EVENTS))
    (event,) = unread(outbox, 1)
    assert list(event.token_ids) == list(range(2 * MOST_EVENTS))
    assert [each.token_id for each in event_message(event).delta.logprobs] == list(range(2 * MOST_EVENTS))
    assert event_message(event).delta.text == "é" * 2 * MOST_EVENTS


def test_a_client_that_slept_through_a_long_prompt_is_told_how_far_it_is() -> None:
    """Its stream was ended, with a word about bytes, for reports that nobody needs twice."""
    outbox = Outbox()
    assert outbox.put(delta(1)) and all(outbox.put(prefill(done)) for done in range(4 * MOST_EVENTS))
    assert outbox.put(delta(2))
    first, progress, second = unread(outbox, 3)
    assert list(first.token_ids) == [1] and list(second.token_ids) == [2]
    assert progress.done == 4 * MOST_EVENTS - 1


def test_phases_that_were_not_read_are_all_told() -> None:
    outbox = Outbox()
    queued = Progress(Phase.QUEUED, 1, 2)
    for event in (queued, prefill(1), prefill(2)):
        outbox.put(event)
    assert [event.phase for event in unread(outbox, 2)] == [Phase.QUEUED, Phase.PREFILL]


def test_a_single_event_may_be_large_and_what_comes_on_top_of_it_unread_may_not() -> None:
    outbox = Outbox()
    assert outbox.put(delta(1, "x" * MOST_BYTES))
    assert not outbox.put(delta(2))
    with pytest.raises(NotRead):
        unread(outbox, 1)
    assert outbox.put(delta(1, "x" * MOST_BYTES))
    assert len(unread(outbox, 1)[0].text) == MOST_BYTES
