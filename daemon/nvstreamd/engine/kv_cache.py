"""Where are the keys and values of a sequence, in every group of layers, and which of them does nobody see any more?

In a group with a window a sequence keeps the pages that its next token sees. A prefix is found again where each group
still has what the token behind it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nvstreamd.engine.kv_pages import KvPages, chain


@dataclass(frozen=True, slots=True)
class GroupPages:
    """The pages of a group, and its window in tokens."""

    pages: KvPages
    window: int | None = None

    def first(self, position: int) -> int:
        """The first page that a token at `position` sees, by its place in the sequence."""
        return 0 if self.window is None else max(0, position + 1 - self.window) // self.pages.page_tokens


@dataclass(slots=True)
class Table:
    """A sequence's pages in one group, by their place in it; those before `first` were given back."""

    pages: list[int] = field(default_factory=list)
    first: int = 0


@dataclass(slots=True)
class SequencePages:
    """What a sequence has of the cache: a table a group, and the names of its full pages so far."""

    tables: list[Table] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)


class KvCache:
    """All groups. Every sequence of `page_tokens` tokens has a page in each."""

    def __init__(self, pools: Sequence[GroupPages]) -> None:
        self.pools = pools
        self.page_tokens = pools[0].pages.page_tokens

    @property
    def count(self) -> int:
        """All pages that there are."""
        return sum(pool.pages.count for pool in self.pools)

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return sum(pool.pages.used for pool in self.pools)

    def lacking(self, tokens: int, at_once: int) -> tuple[int, int] | None:
        """(pages needed, pages there) of a group in which a sequence cannot grow so long, even alone; else None.

        It is computed `at_once` tokens at a time.
        """
        for pool in self.pools:
            needed = self._up_to(tokens)
            if pool.window is not None:
                needed = min(needed, self._up_to(pool.window + at_once) + 1)
            if needed > pool.pages.count:
                return needed, pool.pages.count
        return None

    def longest(self, at_once: int) -> int:
        """Tokens of the longest sequence that there is room for, computed `at_once` tokens at a time."""
        return min(pool.pages.count * self.page_tokens for pool in self.pools
                   if pool.window is None or self._up_to(pool.window + at_once) >= pool.pages.count)

    def match(self, uid: int, tokens: Sequence[int]) -> tuple[SequencePages, int]:
        """The pages of the longest known prefix of `tokens`, taken, and its tokens: at least one fewer than all.

        The last token is always computed: its logits are what the request came for.
        """
        names = chain(uid, tokens[: len(tokens) - 1], self.page_tokens, [])
        number = self._longest(names)
        found = SequencePages([], names[:number])
        for pool in self.pools:
            first = min(pool.first(number * self.page_tokens), number)
            pages = [pool.pages.use(name) for name in names[first:number]]
            found.tables.append(Table([0] * first + pages, first))
        return found, number * self.page_tokens

    def _longest(self, names: Sequence[bytes]) -> int:
        """The most pages of which every group knows what the token behind them sees."""
        runs = [[0] for _ in self.pools]
        for name in names:
            for pool, run in zip(self.pools, runs, strict=True):
                run.append(run[-1] + 1 if pool.pages.knows(name) else 0)
        for number in range(len(names), 0, -1):
            if all(run[number] >= number - min(pool.first(number * self.page_tokens), number)
                   for pool, run in zip(self.pools, runs, strict=True)):
                return number
        return 0

    def has_room(self, kept: SequencePages, tokens: int) -> bool:
        """True when a sequence could have `tokens` in all without taking anything from others."""
        return all(self._missing(table, tokens) <= pool.pages.available
                   for table, pool in zip(kept.tables, self.pools, strict=True))

    def grow(self, kept: SequencePages, tokens: int) -> bool:
        """Makes room for `tokens` in all. False: there is none, and nothing has changed."""
        if not self.has_room(kept, tokens):
            return False
        for table, pool in zip(kept.tables, self.pools, strict=True):
            table.pages += pool.pages.take(self._missing(table, tokens)) or []
        return True

    def room(self, kept: SequencePages) -> int:
        """Tokens that a sequence could have in all without taking anything from others."""
        return min((len(table.pages) + pool.pages.available) * self.page_tokens
                   for table, pool in zip(kept.tables, self.pools, strict=True))

    def forget(self, uid: int, tokens: Sequence[int], kept: SequencePages) -> None:
        """Gives back what the token after `tokens`, which are computed, does not see; it stays findable for now."""
        for table, pool in zip(kept.tables, self.pools, strict=True):
            first = pool.first(len(tokens))
            if first > table.first:
                self.remember(uid, tokens, kept)
                pool.pages.release(table.pages[table.first : first])
                table.pages[table.first : first] = [0] * (first - table.first)
                table.first = first

    def remember(self, uid: int, tokens: Sequence[int], kept: SequencePages) -> None:
        """Makes the full pages of a sequence findable; `tokens` are those whose keys and values are computed."""
        names = chain(uid, tokens, self.page_tokens, kept.names)
        for table, pool in zip(kept.tables, self.pools, strict=True):
            for number in range(table.first, len(names)):
                pool.pages.name(table.pages[number], names[number])

    def release(self, kept: SequencePages) -> None:
        """Gives all pages back; those with a name stay findable until their room is needed."""
        for table, pool in zip(kept.tables, self.pools, strict=True):
            pool.pages.release(table.pages[table.first :])
        kept.tables, kept.names = [Table() for _ in self.pools], []

    def nothing(self) -> SequencePages:
        """What a sequence has at first."""
        return SequencePages([Table() for _ in self.pools])

    def _missing(self, table: Table, tokens: int) -> int:
        return max(0, self._up_to(tokens) - len(table.pages))

    def _up_to(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)


def unbounded(count: int, page_tokens: int) -> KvCache:
    """One group whose layers see every token."""
    return KvCache([GroupPages(KvPages(count, page_tokens))])
