"""Does everyone get their turn, within the pages there are, and does nothing leak or stand still?"""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nvstreamd.engine.kv_cache import unbounded
from nvstreamd.engine.pacing import Fixed
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.errors import InvalidRequest
from support.examples import examples
from unit.engine.rig import request

PAGE = 4
MOST_RUNNING = 3
CHUNK = 6


def pages_of(item: Request) -> list[int]:
    """The pages that a request holds."""
    return [page for table in item.kept.tables for page in table.pages[table.first :]]


def scheduler(pages: int, max_running: int = MOST_RUNNING, chunk: int = CHUNK) -> Scheduler:
    return Scheduler(unbounded(pages, PAGE), max_running, Fixed(chunk))


def sequence(number: int, length: int, generate: int, pages: int, uid: int = 0) -> Request:
    """A request whose prompt differs from all others from its first token on."""
    limit = min(pages * PAGE, length + generate)
    return request(number, [number] * length, uid=uid, limit=limit, max_tokens=generate)


def add(plan: Scheduler, item: Request) -> int:
    """Adds a request; its place in the queue, 0 when it takes part in the next pass."""
    plan.add(item)
    return 0 if item in plan.running else [waiting for waiting, _ in plan.forecast(1.0)].index(item) + 1


def finished(item: Request) -> bool:
    return item.generated >= item.max_tokens or len(item.tokens) >= item.limit


def run_pass(plan: Scheduler) -> list[Work]:
    """One pass as the server makes it: tokens appear, requests that are done leave."""
    work = plan.next_pass()
    sampling = [item.request for item in work if item.samples]
    plan.computed(work)
    for item in sampling:
        item.tokens.append(1000 + item.id)
        if finished(item):
            plan.remove(item)
    return work


def drain(plan: Scheduler, most: int = 2000) -> int:
    """Passes until all is done; fails when that takes more than `most`."""
    for passes in range(most):
        if plan.idle:
            return passes
        assert run_pass(plan), "a pass without work while requests wait"
    raise AssertionError(f"not done after {most} passes")


def test_a_decoding_request_gets_its_token_beside_any_prompt() -> None:
    plan = scheduler(100)
    short, long = sequence(1, 2, 50, 100), sequence(2, 90, 1, 100)
    plan.add(short)
    run_pass(plan)
    plan.add(long)
    for _ in range(10):
        work = run_pass(plan)
        assert {item.request.id: item.count for item in work} == {1: 1, 2: CHUNK}


def test_the_oldest_prompt_comes_first_and_the_rest_of_the_chunk_goes_on() -> None:
    plan = scheduler(100)
    for number, length in ((1, 8), (2, 3), (3, 9)):
        plan.add(sequence(number, length, 5, 100))
    shares = [[(item.request.id, item.count) for item in run_pass(plan)] for _ in range(4)]
    assert shares == [[(1, 6)], [(1, 2), (2, 3), (3, 1)], [(1, 1), (2, 1), (3, 6)], [(1, 1), (2, 1), (3, 2)]]


def test_no_more_run_than_may_and_add_tells_the_place_in_the_queue() -> None:
    plan = scheduler(100)
    places = [add(plan, sequence(number, 5, 4, 100)) for number in range(6)]
    assert places == [0, 0, 0, 1, 2, 3]
    plan.next_pass()
    assert [r.id for r in plan.running] == [0, 1, 2]
    plan.remove(next(iter(plan.waiting)))
    assert add(plan, sequence(9, 5, 4, 100)) == 3


def test_one_that_waits_for_pages_is_not_told_that_it_runs_next() -> None:
    plan = scheduler(4, chunk=4 * PAGE)
    assert add(plan, sequence(1, 15, 1, 4)) == 0
    plan.next_pass()
    assert [add(plan, sequence(2, 15, 1, 4)), add(plan, sequence(3, 3, 1, 4))] == [1, 2]


def test_exactly_the_pages_of_one_full_context_are_enough_for_any_number_of_requests() -> None:
    plan = scheduler(5)
    requests = [sequence(number, 7, 100, 5) for number in range(6)]
    for item in requests:
        plan.add(item)
    drain(plan)
    assert [len(item.tokens) for item in requests] == [5 * PAGE] * 6
    assert plan.kv.used == 0


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    plan = scheduler(3)
    with pytest.raises(InvalidRequest) as refusal:
        plan.add(request(1, [1] * 5, limit=3 * PAGE + 2))
    assert refusal.value.field == "prompt"
    assert plan.idle
    # The last token of a sequence is never computed, so one more than the pages hold is the most.
    longest = request(2, [1] * 5, limit=3 * PAGE + 1, max_tokens=99)
    plan.add(longest)
    drain(plan)
    assert len(longest.tokens) == 3 * PAGE + 1


def test_two_that_fit_only_one_at_a_time_both_finish_and_the_older_never_yields() -> None:
    plan = scheduler(6)
    older, younger = sequence(1, 10, 14, 6), sequence(2, 10, 14, 6)
    plan.add(older)
    plan.add(younger)
    while not finished(older):
        assert older.id in {item.request.id for item in run_pass(plan)}
    assert older.preemptions == 0 and younger.preemptions > 0
    drain(plan)
    assert len(younger.tokens) == 24
    assert plan.kv.used == 0


def test_a_preempted_request_gives_its_pages_back_and_is_not_charged_a_cache_hit_on_itself() -> None:
    plan = scheduler(6)
    older, younger = sequence(1, 8, 16, 6), sequence(2, 8, 16, 6)
    plan.add(older)
    plan.add(younger)
    while not younger.preemptions:
        run_pass(plan)
    assert not pages_of(younger) and younger.computed == 0 and list(plan.waiting) == [younger]
    drain(plan)
    assert younger.cached == 0


def test_a_waiting_request_without_room_is_not_preempted_over_and_over() -> None:
    plan = scheduler(6)
    older, younger = sequence(1, 10, 14, 6), sequence(2, 10, 14, 6)
    plan.add(older)
    plan.add(younger)
    drain(plan)
    assert younger.preemptions <= 3


def test_a_prefix_of_the_same_user_is_reused() -> None:
    plan = scheduler(20)
    first, other, again = (request(n, range(11), uid=uid) for n, uid in ((1, 7), (2, 8), (3, 7)))
    for item, cached in ((first, 0), (other, 0), (again, 8)):
        plan.add(item)
        drain(plan)
        assert item.cached == cached


def test_a_request_cancelled_while_its_pass_runs_takes_no_pages_with_it() -> None:
    plan = scheduler(6)
    item = sequence(1, 5, 4, 6)
    plan.add(item)
    work = plan.next_pass()
    plan.remove(item)
    plan.computed(work)
    plan.remove(item)
    assert plan.idle and plan.kv.used == 0


@settings(derandomize=True, deadline=None, max_examples=examples(150))
@given(
    pages=st.integers(2, 12),
    running=st.integers(1, 5),
    chunk=st.integers(1, 20),
    sizes=st.lists(st.tuples(st.integers(1, 47), st.integers(1, 30)), min_size=1, max_size=8),
)
def test_whatever_comes_all_of_it_ends(pages: int, running: int, chunk: int, sizes: list[tuple[int, int]]) -> None:
    plan = scheduler(pages, running, chunk)
    requests = [sequence(n, min(p, pages * PAGE - 1), g, pages) for n, (p, g) in enumerate(sizes)]
    for item in requests:
        plan.add(item)
    drain(plan, most=20000)
    assert all(finished(item) for item in requests)
    assert plan.kv.used == 0


class Traffic(RuleBasedStateMachine):
    """Requests come, run and are cancelled in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 7
        self.plan = scheduler(self.pages)
        self.numbers = count()
        self.alive: list[Request] = []

    @rule(length=st.integers(1, 27), generate=st.integers(1, 12), shared=st.booleans(), uid=st.integers(0, 1))
    def add(self, length: int, generate: int, shared: bool, uid: int) -> None:
        item = sequence(next(self.numbers), length, generate, self.pages, uid)
        if shared:
            item.tokens[:] = range(length)
        place = add(self.plan, item)
        self.alive.append(item)
        assert (place == 0) == (item in self.plan.running) and place <= len(self.plan.waiting)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.alive))
        self.alive.remove(item)
        self.plan.remove(item)
        assert not pages_of(item)

    @rule()
    def next_pass(self) -> None:
        work = run_pass(self.plan)
        assert bool(work) == bool(self.alive)
        prompts = [item.count for item in work if item.count > 1]
        assert sum(prompts) <= CHUNK
        assert len({id(item.request) for item in work}) == len(work) <= MOST_RUNNING
        for item in work:
            held = pages_of(item.request)
            assert not held or item.begin + item.count <= len(held) * PAGE
        in_work = {item.request.id for item in work}
        assert all(r.id in in_work for r in self.plan.running if r.pending == 1 and r.generated > 1)
        self.alive = [item for item in self.alive if not finished(item)]

    @invariant()
    def every_page_has_its_holders(self) -> None:
        held = {page for item in self.plan.running for page in pages_of(item)}
        assert len(held) == self.plan.kv.used
        assert len(self.plan.running) <= MOST_RUNNING
        assert not any(pages_of(item) for item in self.plan.waiting)

    def teardown(self) -> None:
        drain(self.plan)
        assert all(finished(item) for item in self.alive)
        assert self.plan.kv.used == 0


def test_traffic_in_any_order() -> None:
    run_state_machine_as_test(
        Traffic, settings=settings(derandomize=True, deadline=None, max_examples=examples(60), stateful_step_count=40))
