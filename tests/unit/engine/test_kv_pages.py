"""Are pages handed out once, found again only by their owner, and evicted in the right order?"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nvstreamd.engine.kv_cache import GroupPages, KvCache, SequencePages, Table, unbounded
from nvstreamd.engine.kv_pages import ROOT, KvPages, page_key
from support.examples import examples

PAGE = 4


class Pages(KvPages):
    """One group's pages, with the prefixes that a cache of that group alone finds."""

    def match(self, uid: int, tokens: list[int]) -> list[int]:
        """Takes the pages of the longest known prefix."""
        return KvCache([GroupPages(self)]).match(uid, tokens)[0].tables[0].pages

    def remember(self, uid: int, tokens: list[int], pages: list[int]) -> None:
        """Makes full pages findable."""
        KvCache([GroupPages(self)]).remember(uid, tokens, SequencePages([Table(pages)]))


def store(pages: Pages, uid: int, tokens: list[int]) -> list[int]:
    """Computes a sequence and gives its pages back; those pages."""
    taken = pages.take(-(-len(tokens) // PAGE))
    assert taken is not None
    pages.remember(uid, tokens, taken)
    pages.release(taken)
    return taken


def matched(pages: Pages, uid: int, tokens: list[int]) -> int:
    """How many pages of these tokens are known; they are not kept."""
    found = pages.match(uid, tokens)
    pages.release(found)
    return len(found)


def test_only_the_same_user_finds_a_prefix() -> None:
    pages = Pages(8, PAGE)
    store(pages, 1, list(range(9)))
    assert matched(pages, 2, list(range(9))) == 0
    assert matched(pages, 1, list(range(9))) == 2


def test_the_last_token_is_never_matched() -> None:
    pages = Pages(8, PAGE)
    store(pages, 1, list(range(8)))
    assert [matched(pages, 1, list(range(length))) for length in (1, 4, 5, 8, 9, 12)] == [0, 0, 1, 1, 2, 2]


def test_only_full_pages_are_found() -> None:
    pages = Pages(8, PAGE)
    store(pages, 1, list(range(7)))
    assert matched(pages, 1, list(range(30))) == 1


def test_the_same_tokens_behind_other_tokens_are_another_page() -> None:
    pages = Pages(8, PAGE)
    store(pages, 1, [0, 0, 0, 0, 5, 5, 5, 5, 9])
    assert matched(pages, 1, [1, 1, 1, 1, 5, 5, 5, 5, 9]) == 0
    assert matched(pages, 1, [5, 5, 5, 5, 9]) == 0


def test_names_do_not_run_into_each_other() -> None:
    keys = {page_key(uid, ROOT, tokens) for uid in (0, 1, 2**32 - 1) for tokens in ([1, 0], [0, 1], [256, 0])}
    assert len(keys) == 9


def test_a_page_in_use_by_two_stays_until_both_are_done() -> None:
    pages = Pages(3, PAGE)
    store(pages, 1, list(range(8)))
    first, second = pages.match(1, list(range(9))), pages.match(1, list(range(9)))
    assert first == second and pages.used == 2
    pages.release(first)
    assert pages.used == 2 and pages.take(2) is None
    pages.release(second)
    assert pages.used == 0 and pages.take(3) is not None


def test_nothing_is_taken_when_there_is_not_enough() -> None:
    pages = Pages(3, PAGE)
    assert pages.take(4) is None
    assert pages.take(0) == []
    assert sorted(pages.take(3) or []) == [0, 1, 2]


def test_the_least_recently_used_chain_goes_first_and_its_end_before_its_beginning() -> None:
    pages = Pages(6, PAGE)
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
    pages = Pages(6, PAGE)
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
        self.pages = Pages(9, PAGE)
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

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def what_is_in_use_is_found(self, data: st.DataObject) -> None:
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
        Model, settings=settings(derandomize=True, deadline=None, max_examples=examples(80), stateful_step_count=40))


WINDOW = 6


class Windowed(RuleBasedStateMachine):
    """A group that sees everything beside one that sees six tokens, and sequences that grow in both."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache([GroupPages(KvPages(20, PAGE)), GroupPages(KvPages(9, PAGE), WINDOW)])
        self.live: list[tuple[int, list[int], SequencePages]] = []
        # What each page of each group holds: the tokens up to its end, whose they are.
        self.holds: list[dict[int, tuple[int, tuple[int, ...]]]] = [{}, {}]

    @rule(uid=st.integers(0, 1), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24))
    def begin(self, uid: int, tokens: list[int]) -> None:
        kept, computed = self.cache.match(uid, tokens)
        assert computed < len(tokens)
        self._check_sees(uid, tokens[:computed], kept)
        self.live.append((uid, tokens[:computed], kept))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        uid, tokens, kept = data.draw(st.sampled_from(self.live))
        if not self.cache.grow(kept, len(tokens) + len(more)):
            assert not self.cache.has_room(kept, len(tokens) + len(more))
            return
        begin = len(tokens)
        tokens += more
        self._check_sees(uid, tokens[:begin], kept)
        for number in range(begin // PAGE, -(-len(tokens) // PAGE)):
            for table, holds in zip(kept.tables, self.holds, strict=True):
                holds[table.pages[number]] = uid, tuple(tokens[: (number + 1) * PAGE])
        self.cache.forget(uid, tokens, kept)
        self._check_sees(uid, tokens, kept)
        assert len(kept.tables[1].pages) - kept.tables[1].first <= -(-WINDOW // PAGE) + 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.live))
        self.live.remove(item)
        self.cache.remember(*item)
        self.cache.release(item[2])

    def _check_sees(self, uid: int, tokens: list[int], kept: SequencePages) -> None:
        """The next token finds what it sees, in every group, as it was left there."""
        for table, pool, holds in zip(kept.tables, self.cache.pools, self.holds, strict=True):
            first = 0 if pool.window is None else max(0, len(tokens) + 1 - pool.window) // PAGE
            for number in range(first, len(tokens) // PAGE):
                assert number >= table.first
                assert holds[table.pages[number]] == (uid, tuple(tokens[: (number + 1) * PAGE]))

    @invariant()
    def pages_add_up(self) -> None:
        for place, pool in enumerate(self.cache.pools):
            held = [page for _, _, kept in self.live for page in kept.tables[place].pages[kept.tables[place].first :]]
            assert pool.pages.used == len(set(held))

    def teardown(self) -> None:
        for item in self.live:
            self.cache.release(item[2])
        assert self.cache.used == 0


def test_sequences_find_what_they_see_in_every_group() -> None:
    run_state_machine_as_test(Windowed, settings=settings(
        derandomize=True, deadline=None, max_examples=examples(150), stateful_step_count=30))


def test_a_prefix_counts_only_where_its_window_is_still_there() -> None:
    cache = KvCache([GroupPages(KvPages(8, PAGE)), GroupPages(KvPages(4, PAGE), WINDOW)])
    tokens = list(range(20))
    kept, _ = cache.match(1, tokens)
    for end in (8, 16, 20):
        assert cache.grow(kept, end)
        cache.forget(1, tokens[:end], kept)
    cache.remember(1, tokens, kept)
    cache.release(kept)
    found, computed = cache.match(1, [*tokens, 0])
    assert computed == 20 and found.tables[1].first == 3
    cache.release(found)
    # Somebody takes the window's pages, the oldest first: shorter prefixes go with them, the whole stays.
    other, _ = cache.match(2, [0])
    assert cache.grow(other, 5)
    found, computed = cache.match(1, tokens[:13])
    assert computed == 0, "what the 13th token sees is gone"
    cache.release(found)
    assert cache.match(1, [*tokens, 0])[1] == 20


def test_a_long_sequence_needs_no_more_of_a_window_than_it_sees() -> None:
    cache = KvCache([GroupPages(KvPages(100, PAGE)), GroupPages(KvPages(6, PAGE), WINDOW)])
    assert cache.lacking(400, 8) is None and cache.lacking(401, 8) == (101, 100)
    assert cache.lacking(400, 60) == (18, 6)
    assert cache.longest(8) == 400 and cache.longest(60) == 24
    assert unbounded(5, PAGE).longest(8) == 20
