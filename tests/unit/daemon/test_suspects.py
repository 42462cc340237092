"""Who is refused for the deaths of engines? Whoever is proven to kill them, not whoever was there."""

from __future__ import annotations

import pytest

from nvstreamd.errors import PoisonedRequest
from nvstreamd.supervisor import calls as module
from nvstreamd.supervisor.calls import Calls
from nvstreamd.supervisor.suspicion import PATIENCE_SECONDS
from support.calls import run_order


class Clock:
    """Time of which the test says how much there is."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", made)
    return made


def opened(calls: Calls, uid: int, text: str) -> int:
    return calls.open(run_order(uid, text), lambda tokens: None).number


def handed_over(calls: Calls) -> list[int]:
    return [command.number for command in calls.to_hand_over()]


def test_a_suspect_without_a_quiet_moment_is_tried_when_it_comes_again(clock: Clock) -> None:
    """Somebody else's request killed the engines. Theirs was refused for good, whatever they did."""
    calls = Calls("model", 8, lambda number: None)
    innocent = opened(calls, 1, "hello")
    for _ in range(2):
        assert innocent in handed_over(calls)
        calls.engine_lost(by_itself=True)
    opened(calls, 2, "keeps the engine busy")
    assert innocent not in handed_over(calls)
    clock.now += PATIENCE_SECONDS + 1
    calls.give_up_suspects()
    assert innocent not in calls.streams
    calls.close(*calls.streams)

    again = opened(calls, 1, "hello")
    assert handed_over(calls) == [again], "it is tried alone"
    calls.close(again)
    assert opened(calls, 1, "hello") and len(handed_over(calls)) == 1


def test_one_that_kills_alone_is_refused_after_it_was_only_suspected(clock: Clock) -> None:
    calls = Calls("model", 8, lambda number: None)
    opened(calls, 1, "kills")
    for _ in range(2):
        handed_over(calls)
        calls.engine_lost(by_itself=True)
    busy = opened(calls, 2, "keeps the engine busy")
    handed_over(calls)
    clock.now += PATIENCE_SECONDS + 1
    calls.give_up_suspects()
    opened(calls, 1, "kills")
    assert handed_over(calls) == [], "a suspect waits for the engine to have nothing else"
    calls.close(busy)
    handed_over(calls)
    calls.engine_lost(by_itself=True)
    with pytest.raises(PoisonedRequest):
        opened(calls, 1, "kills")


def test_a_suspect_that_comes_again_does_not_wait_for_ever(clock: Clock) -> None:
    calls = Calls("model", 8, lambda number: None)
    opened(calls, 1, "hello")
    for _ in range(2):
        handed_over(calls)
        calls.engine_lost(by_itself=True)
    opened(calls, 2, "keeps the engine busy")
    handed_over(calls)
    for _ in range(2):
        clock.now += PATIENCE_SECONDS + 1
        calls.give_up_suspects()
        assert {stream.order.uid for stream in calls.streams.values()} == {2}
        opened(calls, 1, "hello")
        handed_over(calls)
