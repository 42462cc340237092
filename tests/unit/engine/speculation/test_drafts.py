"""Do guesses change nothing but the time, stay with their user, and get better by what proved right?"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nvstreamd.engine.kv_cache import unbounded
from nvstreamd.engine.output import Output
from nvstreamd.engine.pacing import Fixed
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.engine.speculation.drafts import MOST, Drafts
from nvstreamd.engine.tokenizer import Detokenizer

PAGE, PAGES = 4, 200
# What comes next, given the tokens so far: the model.
Next = Callable[[list[int]], int]


class Free(Fixed):
    """Passes take the same time however wide they are, as while weights stream."""

    def seconds(self, rows: int, wanted: int) -> float:
        """A second."""
        return 1.0


class Engine:
    """The loop of an engine whose model is a function."""

    def __init__(self, following: Next, pages: int = PAGES, pacing: Fixed | None = None) -> None:
        self.following = following
        self.plan = Scheduler(unbounded(pages, PAGE), 4, pacing or Free(64))
        self.drafts = Drafts(self.plan.kv, self.plan.pacing)
        self.passes = 0

    def answer(self, *requests: Request) -> list[list[int]]:
        """What each request gets."""
        for request in requests:
            self.plan.add(request)
        while not self.plan.idle:
            work = self.drafts.draft(self.plan.next_pass())
            self.passes += 1
            self.plan.computed(work)
            for item in work:
                if item.samples:
                    self._sample(item)
        return [request.tokens[request.prompt_length :] for request in requests]

    def _sample(self, item: Work) -> None:
        request, right = item.request, 0
        self._one(request)
        while right < len(item.draft) and request in self.plan.running and request.tokens[-1] == item.draft[right]:
            right += 1
            self._one(request)
        self.plan.verified(item, right)
        self.drafts.verified(item, right)
        assert request not in self.plan.running or request.pending == 1

    def _one(self, request: Request) -> None:
        request.tokens.append(self.following(request.tokens))
        if request.generated == request.max_tokens:
            self.plan.remove(request)
            self.drafts.forget(request)


def request(number: int, prompt: list[int], tokens: int = 40, uid: int = 1, *, speculates: bool = True) -> Request:
    silent = Output(Detokenizer(lambda token: b""), ())
    limit = len(prompt) + tokens + 1
    return Request(number, uid, list(prompt), len(prompt), limit, tokens, Sampling(), silent, speculates=speculates)


def cycle(tokens: list[int]) -> int:
    """A text that repeats itself every ten tokens."""
    return (tokens[-1] + 1) % 10


def noise(tokens: list[int]) -> int:
    """A text that never repeats itself but by chance."""
    return random.Random(sum(tokens) * 31 + len(tokens)).randrange(50)


@pytest.mark.parametrize("following", [cycle, noise])
def test_the_answer_is_the_same_with_and_without(following: Next) -> None:
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9, 0, 1], [3, 1, 4, 1, 5]]
    plain = Engine(following).answer(*(request(n, p, speculates=False) for n, p in enumerate(prompts)))
    assert Engine(following).answer(*(request(n, p) for n, p in enumerate(prompts))) == plain


def test_a_text_that_repeats_itself_takes_a_fraction_of_the_passes() -> None:
    engine = Engine(cycle)
    item = request(1, list(range(10)) * 2, 200)
    engine.answer(item)
    assert engine.passes < 40 and item.accepted > 150 and item.accepted <= item.proposed
    assert (engine.drafts.proposed, engine.drafts.accepted) == (item.proposed, item.accepted)


def test_an_earlier_text_of_the_same_user_is_guessed_from_and_nobody_elses() -> None:
    engine = Engine(noise)
    prompt = [7, 7, 1, 2, 3]
    first = request(1, prompt, 60)
    engine.answer(first)
    begun, again = engine.passes, request(2, prompt, 60)
    engine.answer(again)
    assert engine.passes - begun < 20 and again.accepted > 40
    other = request(3, prompt, 60, uid=2)
    engine.answer(other)
    assert other.accepted == 0 and other.tokens == again.tokens == first.tokens


def test_who_does_not_want_it_has_none() -> None:
    engine = Engine(cycle)
    item = request(1, list(range(10)) * 2, 50, speculates=False)
    engine.answer(item)
    assert item.proposed == 0 and engine.passes == 50


def test_guesses_that_prove_wrong_are_given_up_where_they_cost() -> None:
    """Each row costs as much as the pass: only what is nearly sure may pay."""
    def deceiving(tokens: list[int]) -> int:
        """Runs of three that come again, and something else behind them each time."""
        return (1, 2, 3, 10 + len(tokens))[len(tokens) % 4]

    engine = Engine(deceiving, pacing=Fixed(64))
    item = request(1, [9], 400)
    engine.answer(item)
    assert item.proposed < 40


def test_guessing_that_fails_ends_for_that_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, guess = Engine(cycle), Drafts._guess

    def failing(drafts: Drafts, item: Work) -> object:
        if item.request.id == 1:
            raise ZeroDivisionError
        return guess(drafts, item)

    monkeypatch.setattr(Drafts, "_guess", failing)
    one, other = request(1, list(range(10)) * 2), request(2, list(range(10)) * 2)
    assert engine.answer(one, other) == Engine(cycle).answer(*(request(n, list(range(10)) * 2, speculates=False)
                                                              for n in (1, 2)))
    assert one.proposed == 0 and other.accepted > 0


def test_guesses_take_no_pages_from_others() -> None:
    engine = Engine(cycle, pages=12)
    requests = [request(n, list(range(10)), 12, uid=n) for n in range(2)]
    plain = Engine(cycle, pages=12).answer(*(request(n, list(range(10)), 12, uid=n, speculates=False)
                                             for n in range(2)))
    assert engine.answer(*requests) == plain and not any(item.preemptions for item in requests)


def test_a_guess_never_goes_past_the_end_of_an_answer() -> None:
    engine = Engine(cycle)
    for left in range(1, MOST + 2):
        item = request(left, list(range(10)) * 3, left)
        assert len(engine.answer(item)[0]) == left
