"""Which calls keep the others' short ones waiting? None that may take long, also when half of it is known already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvstreamd.engine.commands import Encode, Written
from nvstreamd.engine.preparation.desk import Desk, Job
from nvstreamd.engine.preparation.questions import CHEAP, QUICK_SECONDS, Ask
from nvstreamd.wire.engine_pb2 import Encoded, Failure, FromEngine

SCHEMA = Ask.of_schema("{}", CHEAP + 1)
TEXT = Ask.of_text(b"x" * 2 * CHEAP, 2 * CHEAP)
NOTHING = Written(0, None, bytes)


def job(ask: Ask, answer: FromEngine | None, uid: int = 1) -> Job:
    return Job(Encode(uid, uid, NOTHING, share=uid), [ask], ask.cost_with(answer))


@pytest.mark.parametrize(("ask", "answer", "costly"), [
    (TEXT, None, True),
    (TEXT, FromEngine(encoded=Encoded()), False),
    (SCHEMA, None, True),
    (SCHEMA, FromEngine(encoded=Encoded(schema="{}", compile_seconds=QUICK_SECONDS / 2)), False),
    (SCHEMA, FromEngine(encoded=Encoded(schema="{}", compile_seconds=2 * QUICK_SECONDS)), True),
    (SCHEMA, FromEngine(failure=Failure(status="INVALID_ARGUMENT")), False),
])
def test_what_takes_long_again_stays_out_of_the_lane_of_short_calls(
        ask: Ask, answer: FromEngine | None, costly: bool) -> None:
    """A schema of 10000 properties takes 5 s to compile, each time: sent again, nobody's short call was prepared."""
    desk = Desk()
    desk.put(job(ask, answer))
    assert (desk.take(costly=False) is None) == costly
    assert (desk.take(costly=True) is not None) == costly


def test_users_take_turns_and_have_one_costly_call_under_way() -> None:
    desk = Desk()
    jobs = [job(SCHEMA, None, uid) for uid in (1, 1, 1, 2)]
    for each in jobs:
        desk.put(each)

    def taken() -> Iterator[Job]:
        while (found := desk.take(costly=True)) is not None:
            yield found

    assert list(taken()) == [jobs[0], jobs[3]]
    desk.done(jobs[0])
    assert list(taken()) == [jobs[1]]
    assert desk.remove(jobs[2]) and not desk.remove(jobs[1])
    desk.done(jobs[1])
    assert list(taken()) == []
