"""Does a user's share lead to answers, and can nobody earn more of it while they want none?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest

from nvstreamd.engine.kv_cache import unbounded
from nvstreamd.engine.pacing import Fixed
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler, Work
from unit.engine.rig import request

PAGE, CHUNK, LONG = 16, 8, 1 << 18
NARROW, A_TOKEN = 0.1, 0.01
HEAVY, LIGHT, NEW = 1, 2, 3


class Traffic:
    """Users who always have as many requests open as they want, of this prompt and answer."""

    def __init__(self, slots: int, pages: int = 1 << 16) -> None:
        self.pages = pages
        self.plan = Scheduler(unbounded(pages, PAGE), slots, Fixed(CHUNK))
        self.numbers = count()
        self.wants: dict[int, tuple[int, int, int, float, bool]] = {}
        self.served: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()

    def want(self, uid: int, requests: int, prompt: int, answer: int, weight: float = 1.0, batch: bool = False) -> None:
        self.wants[uid] = requests, prompt, answer, weight, batch

    def passes(self, number: int) -> None:
        for _ in range(number):
            self._fill()
            work = self.plan.next_pass()
            self._compute(work)

    def _fill(self) -> None:
        here = Counter(item.uid for item in (*self.plan.running, *self.plan.waiting))
        for uid, (requests, prompt, answer, weight, batch) in self.wants.items():
            for _ in range(requests - here[uid]):
                number = next(self.numbers)
                item = request(number, [number] * prompt, uid=uid, limit=min(self.pages * PAGE, prompt + answer),
                               max_tokens=answer)
                item.weight, item.batch = weight, batch
                self.plan.add(item)

    def _compute(self, work: Sequence[Work]) -> None:
        sampling = [item.request for item in work if item.samples]
        self.plan.computed(work, NARROW + A_TOKEN * sum(item.count - 1 for item in work))
        self.served.update({item.request.uid: 0 for item in work})
        for item in work:
            self.served[item.request.uid] += item.count
        for drawn in sampling:
            self._token(drawn)

    def _token(self, item: Request) -> None:
        item.tokens.append(1)
        if item.generated >= item.max_tokens or len(item.tokens) >= item.limit:
            self.plan.remove(item)
            self.ended[item.uid] += 1


@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_one_long_stream_in_a_corner_earns_nothing(weight: float) -> None:
    """After an hour of it a user had held up everybody else's prompts for as long."""
    traffic = Traffic(slots=8)
    traffic.want(HEAVY, 7, 40, 20)
    traffic.want(LIGHT, 1, 1, LONG, weight)
    traffic.passes(3000)
    traffic.want(LIGHT, 8, 400, 4)
    traffic.served.clear()
    traffic.passes(300)
    assert traffic.served[HEAVY] > traffic.served[LIGHT] / 3


@pytest.mark.parametrize("corner", ["a long stream", "a request of the batch class"])
def test_who_comes_anew_is_not_put_before_all_others_for_long(corner: str) -> None:
    traffic = Traffic(slots=1 if "batch" in corner else 8)
    traffic.want(HEAVY, 7, 40, 20)
    traffic.want(LIGHT, 1, 1, LONG, batch="batch" in corner)
    traffic.passes(3000)
    traffic.want(NEW, 8, 400, 4)
    traffic.served.clear()
    traffic.passes(300)
    assert traffic.served[HEAVY] > traffic.served[NEW] / 3


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_who_wants_more_has_it_by_weight(slots: int, weight: float) -> None:
    traffic = Traffic(slots)
    traffic.want(HEAVY, 12, 200, 1)
    traffic.want(NEW, 12, 200, 1, weight)
    traffic.passes(1500)
    assert traffic.served[NEW] == pytest.approx(weight * traffic.served[HEAVY], rel=0.2)


@pytest.mark.parametrize(("slots", "pages"), [(1, 40), (2, 20), (4, 20), (8, 12)])
def test_users_who_need_most_of_the_pages_have_answers_all_of_them(slots: int, pages: int) -> None:
    """They had the same time each, and it went into the same tokens again and again: some had no answer, ever."""
    traffic = Traffic(slots, pages)
    whole = pages * PAGE
    for uid, (prompt, answer) in enumerate(((whole // 2, whole // 4), (whole // 10, whole // 2), (whole // 3, 20))):
        traffic.want(uid, 3, prompt, answer)
    traffic.passes(4000)
    assert min(traffic.ended[uid] for uid in range(3)) >= 2, traffic.ended
