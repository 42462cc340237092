"""Does everybody get the share that is theirs, in any traffic, and is a short request not kept waiting?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.engine.fair import Tally, shares_of_pass
from nvstreamd.engine.kv_cache import unbounded
from nvstreamd.engine.pacing import Fixed
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler, Work
from support.examples import examples
from unit.engine.rig import request

PAGE, CHUNK, SLOTS = 4, 16, 4
NARROW, ROW = 0.05, 0.002


def cost(work: list[Work]) -> float:
    """Seconds that a pass takes: its weights, and a little for each token beyond one a request."""
    return NARROW + ROW * sum(item.count - 1 for item in work)


class Box:
    """An engine without a model: users keep requests open, passes take time."""

    def __init__(self, pages: int = 1000) -> None:
        self.plan = Scheduler(unbounded(pages, PAGE), SLOTS, Fixed(CHUNK))
        self.tokens: Counter[int] = Counter()
        self.numbers = count(1)

    def add(self, uid: int, prompt: int, generate: int, weight: float = 1.0, batch: bool = False) -> Request:
        number = next(self.numbers)
        made = request(number, [number] * prompt, uid=uid, limit=min(prompt + generate, 4 * 1000), max_tokens=generate)
        made.weight, made.batch = weight, batch
        self.plan.add(made)
        return made

    def run_pass(self) -> list[Work]:
        work = self.plan.next_pass()
        sampling = [item.request for item in work if item.samples]
        self.plan.computed(work, cost(work))
        for each in sampling:
            each.tokens.append(5000)
            self.tokens[each.uid] += 1
            if each.generated >= each.max_tokens:
                self.plan.remove(each)
        return work

    def keep_open(self, wanted: dict[int, Callable[[], Request]], each: int, passes: int) -> None:
        """Runs passes while every user keeps `each` requests open."""
        for _ in range(passes):
            for uid, make in wanted.items():
                running = sum(r.uid == uid for r in self.plan.running)
                for _ in range(each - running - self.plan.waiting.count(uid)):
                    make()
            self.run_pass()


def test_weights_are_kept_whatever_each_asks_for() -> None:
    box, weights, lengths = Box(), {1: 1.0, 2: 2.0, 3: 4.0}, {1: 90, 2: 10, 3: 40}
    box.keep_open({uid: lambda uid=uid: box.add(uid, 3, lengths[uid], weights[uid]) for uid in weights}, 6, 4000)
    for uid, weight in weights.items():
        assert box.tokens[uid] / sum(box.tokens.values()) == pytest.approx(weight / 7, rel=0.1)


def test_many_requests_get_no_more_than_one() -> None:
    box = Box()
    wanted: dict[int, Callable[[], Request]] = {uid: lambda uid=uid: box.add(uid, 3, 30) for uid in range(8)}
    for _ in range(3000):
        for uid, make in wanted.items():
            if sum(r.uid == uid for r in box.plan.running) + box.plan.waiting.count(uid) < uid + 1:
                make()
        box.run_pass()
    had = [box.tokens[uid] for uid in wanted]
    assert sum(had) ** 2 / (len(had) * sum(each**2 for each in had)) > 0.98


@pytest.mark.parametrize(("pages", "passes"), [(1000, 1), (60, 8)])
def test_a_short_request_of_another_user_is_not_kept_waiting(pages: int, passes: int) -> None:
    """It is in the very next pass, or, where one request of the other fills the pages, has its turn soon."""
    box = Box(pages)
    for _ in range(20):
        box.add(1, 200, 30)
    for _ in range(30):
        box.run_pass()
        short = box.add(2, 5, 1)
        for _ in range(passes):
            if not short.generated:
                box.run_pass()
        assert short.generated == 1


def test_batch_waits_for_everybody_and_is_done_when_nobody_is_there() -> None:
    box = Box()
    nightly = [box.add(1, 3, 20, weight=100.0, batch=True) for _ in range(6)]
    box.run_pass()
    for _ in range(SLOTS):
        box.add(2, 3, 10, weight=0.01)
    for _ in range(10):
        assert {item.request.uid for item in box.run_pass()} == {2}
    while not box.plan.idle:
        box.run_pass()
    assert all(each.generated == 20 for each in nightly)


@given(traffic=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 70), st.integers(1, 40),
                                  st.sampled_from([0.01, 1.0, 100.0]), st.booleans()), min_size=1, max_size=25),
       pages=st.integers(28, 200))
@settings(derandomize=True, deadline=None, max_examples=examples(150))
def test_whatever_users_want_all_of_it_ends(traffic: list[tuple[int, int, int, float, bool]], pages: int) -> None:
    box = Box(pages)
    wanted = [box.add(uid, prompt, generate, weight, batch) for uid, prompt, generate, weight, batch in traffic]
    for _ in range(20_000):
        if box.plan.idle:
            break
        assert box.run_pass(), "a pass without work while requests wait"
    assert box.plan.idle and all(each.generated == each.max_tokens for each in wanted)


def test_the_forecast_says_who_is_next_and_when_at_the_latest() -> None:
    box = Box()
    for _ in range(2):
        for uid in range(1, 7):
            box.add(uid, 3, 12)
    box.run_pass()
    while box.plan.waiting:
        forecast, passes = box.plan.forecast(NARROW), 0
        begins = [begin for _, begin in forecast]
        assert len(forecast) == len(box.plan.waiting) and begins == sorted(begins)
        (first, latest) = forecast[0]
        before = set(map(id, box.plan.waiting))
        while before <= {id(each) for each in box.plan.waiting}:
            box.run_pass()
            passes += 1
        assert first in box.plan.running and passes <= latest + 1


def test_a_pass_is_charged_to_those_who_caused_it() -> None:
    assert shares_of_pass([1, 1], 0.1, 0.1) == [0.05, 0.05]
    prompt, token = shares_of_pass([65, 1], 0.3, 0.1)
    assert prompt == pytest.approx(0.25) and token == pytest.approx(0.05)
    assert shares_of_pass([1], 0.7, 0.1) == [0.7]
    assert sum(shares_of_pass([5, 9, 1, 1], 1.0, 0.2)) == pytest.approx(1.0)


def test_who_causes_reads_pays_for_them_and_nobody_else_computes_for_nothing() -> None:
    """A token beside a prompt whose experts are waited for: its half of what both share, and its own wait."""
    token, prompt = shares_of_pass([1, 64], 0.1, 0.012, [0.001, 0.029])
    assert token == pytest.approx(0.006 + 0.001) and prompt == pytest.approx(0.093)
    assert shares_of_pass([1, 1], 0.1, 0.04, [0.06, 0.0]) == pytest.approx([0.08, 0.02])


def test_who_was_away_has_saved_up_nothing_and_owes_what_he_owed() -> None:
    tally = Tally()
    for uid in (1, 2):
        tally.arrive(uid)
    tally.charge({1: 10.0, 2: 15.0}, {1, 2})
    tally.leave(2, {1})
    tally.charge({1: 1.0}, {1})
    tally.arrive(3)
    assert tally.served(3) == pytest.approx(11.0)
    tally.arrive(2)
    assert tally.served(2) == 15.0
