"""Are pages handed out once, found again only by their owner, and evicted in the right order?"""

from __future__ import annotations

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nvstreamd.engine.kv_pages import ROOT, KvPages, page_key

PAGE = 4


def store(pages: KvPages, uid: int, tokens: list[int]) -> list[int]:
    """Computes a sequence and gives its pages back; those pages."""
    taken = pages.take(-(-len(tokens) // PAGE))
    assert taken is not None
    pages.remember(uid, tokens, taken)
    pages.release(taken)
    return taken


def matched(pages: KvPages, uid: int, tokens: list[int]) -> int:
    """How many pages of these tokens are known; they are not kept."""
    found = pages.match(uid, tokens)
    pages.release(found)
    return len(found)


def test_only_the_same_user_finds_a_prefix() -> None:
    pages = KvPages(8, PAGE)
    store(pages, 1, list(range(9)))
    assert matched(pages, 2, list(range(9))) == 0
    assert matched(pages, 1, list(range(9))) == 2


def test_the_last_token_is_never_matched() -> None:
    pages = KvPages(8, PAGE)
    store(pages, 1, list(range(8)))
    assert [matched(pages, 1, list(range(length))) for length in (1, 4, 5, 8, 9, 12)] == [0, 0, 1, 1, 2, 2]


def test_only_full_pages_are_found() -> None:
    pages = KvPages(8, PAGE)
    store(pages, 1, list(range(7)))
    assert matched(pages, 1, list(range(30))) == 1


def test_the_same_tokens_behind_other_tokens_are_another_page() -> None:
    pages = KvPages(8, PAGE)
    store(pages, 1, [0, 0, 0, 0, 5, 5, 5, 5, 9])
    assert matched(pages, 1, [1, 1, 1, 1, 5, 5, 5, 5, 9]) == 0
    assert matched(pages, 1, [5, 5, 5, 5, 9]) == 0


def test_names_do_not_run_into_each_other() -> None:
    keys = {page_key(uid, ROOT, tokens) for uid in (0, 1, 2**32 - 1) for tokens in ([1, 0], [0, 1], [256, 0])}
    assert len(keys) == 9


def test_a_page_in_use_by_two_stays_until_both_are_done() -> None:
    pages = KvPages(3, PAGE)
    store(pages, 1, list(range(8)))
    first, second = pages.match(1, list(range(9))), pages.match(1, list(range(9)))
    assert first == second and pages.used == 2
    pages.release(first)
    assert pages.used == 2 and pages.take(2) is None
    pages.release(second)
    assert pages.used == 0 and pages.take(3) is not None


def test_nothing_is_taken_when_there_is_not_enough() -> None:
    pages = KvPages(3, PAGE)
    assert pages.take(4) is None
    assert pages.take(0) == []
    assert sorted(pages.take(3) or []) == [0, 1, 2]


def test_the_least_recently_used_chain_goes_first_and_its_end_before_its_beginning() -> None:
    pages = KvPages(6, PAGE)
    old, new = list(range(9)), list(range(100, 109))
    store(pages, 1, old)
    store(pages, 1, new)
    assert matched(pages, 1, old) == 2
    # Two pages were never named; the third must come from a chain: the end of the one not asked for lately.
    for expected in ((2, 2), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)):
        taken = pages.take(1)
        assert taken is not None
        held = pages.match(1, new), pages.match(1, old)
        assert (len(held[0]), len(held[1])) == expected
        pages.release(held[0])
        pages.release(held[1])


def test_a_twin_computed_at_the_same_time_does_not_cut_the_chain() -> None:
    pages = KvPages(6, PAGE)
    short, long = list(range(5)), list(range(9))
    first, second = pages.take(2), pages.take(3)
    assert first is not None and second is not None
    pages.remember(1, short, first)
    pages.remember(1, long, second)
    pages.release(first)
    pages.remember(1, long, second)
    pages.release(second)
    for expected in (2, 2, 2, 2, 1, 0):
        assert pages.take(1) is not None
        assert matched(pages, 1, long) == expected


class Model(RuleBasedStateMachine):
    """A page cache beside a plain description of what it may and must do."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = KvPages(9, PAGE)
        self.live: list[tuple[int, list[int], list[int]]] = []
        self.computed: set[tuple[int, tuple[int, ...]]] = set()

    # Few different tokens, so that prefixes meet.
    @rule(uid=st.integers(0, 1), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def begin(self, uid: int, tokens: list[int]) -> None:
        found = self.pages.match(uid, tokens)
        assert len(found) * PAGE < len(tokens)
        for number in range(len(found)):
            assert (uid, tuple(tokens[: (number + 1) * PAGE])) in self.computed
        rest = self.pages.take(-(-len(tokens) // PAGE) - len(found))
        if rest is None:
            self.pages.release(found)
            return
        held = {page for _, _, pages in self.live for page in pages}
        assert not held & set(rest) and not set(found) & set(rest)
        self.live.append((uid, tokens, found + rest))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def note(self, data: st.DataObject) -> None:
        uid, tokens, pages = data.draw(st.sampled_from(self.live))
        self.pages.remember(uid, tokens, pages)
        self.computed |= {(uid, tuple(tokens[:end])) for end in range(PAGE, len(tokens) + 1, PAGE)}

    @precondition(lambda self: self.live)
    @rule(data=st.data(), remember=st.booleans())
    def end(self, data: st.DataObject, remember: bool) -> None:
        item = data.draw(st.sampled_from(self.live))
        if remember:
            self.pages.remember(*item)
            self.computed |= {(item[0], tuple(item[1][:end])) for end in range(PAGE, len(item[1]) + 1, PAGE)}
        self.live.remove(item)
        self.pages.release(item[2])

    @rule(data=st.data())
    def what_is_in_use_is_found(self, data: st.DataObject) -> None:
        assume(self.live)
        uid, tokens, pages = data.draw(st.sampled_from(self.live))
        self.pages.remember(uid, tokens, pages)
        self.computed |= {(uid, tuple(tokens[:end])) for end in range(PAGE, len(tokens) + 1, PAGE)}
        found = self.pages.match(uid, [*tokens, 0])
        assert len(found) == len(tokens) // PAGE
        self.pages.release(found)

    @invariant()
    def pages_add_up(self) -> None:
        held = {page for _, _, pages in self.live for page in pages}
        assert self.pages.used == len(held)
        assert self.pages.available == self.pages.count - len(held)

    def teardown(self) -> None:
        for _, _, pages in self.live:
            self.pages.release(pages)
        assert self.pages.used == 0
        assert sorted(self.pages.take(self.pages.count) or []) == list(range(self.pages.count))


def test_any_order_of_calls_agrees_with_the_description() -> None:
    run_state_machine_as_test(
        Model, settings=settings(derandomize=True, deadline=None, max_examples=80, stateful_step_count=40))
