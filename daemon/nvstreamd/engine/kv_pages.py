"""Which page of a group of layers belongs to whom, and which prompt prefixes are still there?

A full page is known by its owner, the page before it and its tokens. Only requests of the same uid find it: nobody
learns another's prompt from timing. Pure bookkeeping; the memory is the device's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

ROOT = b""


def page_key(uid: int, parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full page: owner, everything before it (by `parent`), its tokens."""
    digest = blake2b(parent, digest_size=16, key=uid.to_bytes(8, "little"))
    digest.update(b"".join(token.to_bytes(4, "little") for token in tokens))
    return digest.digest()


def chain(uid: int, tokens: Sequence[int], page_tokens: int, known: list[bytes]) -> list[bytes]:
    """The names of all full pages of a sequence; those that are `known` already are its first ones, and it grows."""
    for number in range(len(known), len(tokens) // page_tokens):
        begin = number * page_tokens
        known.append(page_key(uid, known[-1] if known else ROOT, tokens[begin : begin + page_tokens]))
    return known


@dataclass(slots=True)
class _Page:
    users: int = 0
    key: bytes | None = None


class KvPages:
    """`count` pages of `page_tokens` tokens: free, in use by requests, or kept for their prefix."""

    def __init__(self, count: int, page_tokens: int) -> None:
        self.count = count
        self.page_tokens = page_tokens
        self._pages = [_Page() for _ in range(count)]
        self._free = list(range(count - 1, -1, -1))
        self._by_key: dict[bytes, int] = {}
        # Pages nobody uses but whose prefix may come again, least recently used first.
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that `take` could hand out now."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return self.count - self.available

    def take(self, number: int) -> list[int] | None:
        """`number` pages for a request, or None when there are not that many."""
        if number > self.available:
            return None
        return [self._one() for _ in range(number)]

    def _one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        self._pages[page].users = 1
        return page

    def _forget(self, page: int) -> None:
        key = self._pages[page].key
        if key is not None and self._by_key.get(key) == page:
            del self._by_key[key]
        self._pages[page].key = None

    def knows(self, key: bytes) -> bool:
        """True when the page of that name is there."""
        return key in self._by_key

    def use(self, key: bytes) -> int:
        """The page of a name that is known, for one more request."""
        page = self._by_key[key]
        self._kept.pop(page, None)
        self._pages[page].users += 1
        return page

    def name(self, page: int, key: bytes) -> None:
        """Lets a full page be found by `key`, unless it has a name already."""
        if self._pages[page].key is None:
            self._name(page, key)

    def _name(self, page: int, key: bytes) -> None:
        """Lets `page` be found by `key`, unless a page in use has that name already.

        A twin that nobody uses makes way: kept beside a newer end of its chain it would be evicted before that end.
        """
        twin = self._by_key.get(key)
        if twin is not None:
            if twin not in self._kept:
                return
            del self._kept[twin]
            self._forget(twin)
            self._free.append(twin)
        self._pages[page].key = key
        self._by_key[key] = page

    def release(self, pages: Sequence[int]) -> None:
        """Gives pages back; those with a known prefix stay findable until their room is needed."""
        # Last page first: of a chain, the end is evicted before the beginning.
        for number in reversed(pages):
            page = self._pages[number]
            page.users -= 1
            if page.users == 0:
                if page.key is None:
                    self._free.append(number)
                else:
                    self._kept[number] = None
