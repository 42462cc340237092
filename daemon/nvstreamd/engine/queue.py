"""In which order do waiting requests get their turn, and when will that be?

Of one user first come, first served. Among users whoever has been served least is next; users of the batch class are
after all others. Pure.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from nvstreamd.engine.fair import Tally
from nvstreamd.engine.request import Request

Rank = tuple[bool, float]


class Queue:
    """Requests that wait, by user. `tallies` are of interactive users and, under True, of those of the batch class."""

    def __init__(self, tallies: Mapping[bool, Tally]) -> None:
        self._tallies = tallies
        self._of: dict[int, deque[Request]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._of.values())

    def __bool__(self) -> bool:
        return bool(self._of)

    def __contains__(self, request: Request) -> bool:
        return request in self._of.get(request.share, ())

    @property
    def uids(self) -> set[int]:
        """Users of whom a request waits."""
        return set(self._of)

    @property
    def heads(self) -> Iterator[Request]:
        """The next request of each user."""
        return (requests[0] for requests in self._of.values())

    def count(self, uid: int) -> int:
        """How many requests of a user wait."""
        return len(self._of.get(uid, ()))

    def rank(self, request: Request) -> Rank:
        """The place of a request's user among users: the smallest is next."""
        return request.batch, self._tallies[request.batch].served(request.share)

    def put(self, request: Request) -> None:
        """Behind what its user waits for already."""
        self._of.setdefault(request.share, deque()).append(request)

    def put_back(self, request: Request) -> None:
        """Before what its user waits for: it was running."""
        self._of.setdefault(request.share, deque()).appendleft(request)

    def head(self) -> Request | None:
        """Whose turn it is."""
        return min(self.heads, key=self.rank, default=None)

    def remove(self, request: Request) -> None:
        """Takes a request out."""
        requests = self._of[request.share]
        requests.remove(request)
        if not requests:
            del self._of[request.share]

    def in_order(self, passes_of: Passes) -> Iterator[Request]:
        """All of them in the order in which they will run, should each take as many passes as it may."""
        left = {uid: deque(requests) for uid, requests in self._of.items()}
        heads = [(*self.rank(requests[0]), uid) for uid, requests in left.items()]
        heapq.heapify(heads)
        while heads:
            batch, served, uid = heapq.heappop(heads)
            request = left[uid].popleft()
            yield request
            if left[uid]:
                heapq.heappush(heads, (batch, served + passes_of.seconds(request) / request.weight, uid))


class Passes:
    """How many passes a request may still take, of `pass_seconds`, beside `beside` others."""

    def __init__(self, chunk: int, pass_seconds: float, beside: int) -> None:
        self._chunk = chunk
        self._pass_seconds = pass_seconds
        self._beside = beside

    def left(self, request: Request) -> int:
        """Passes until its last token, were it to use all that it asked for."""
        most = min(request.max_tokens, request.limit - request.prompt_length)
        return -(-request.pending // self._chunk) + max(0, most - request.generated)

    def seconds(self, request: Request) -> float:
        """The seconds that will be charged for that, about."""
        return self.left(request) * self._pass_seconds / self._beside


def begins(running: Sequence[Request], waiting: Sequence[Request], slots: int, passes: Passes) -> list[int]:
    """In how many passes each of the `waiting` begins, given which run now, in how many slots."""
    free = [0] * max(0, slots - len(running)) + [passes.left(request) for request in running]
    heapq.heapify(free)
    found = []
    for request in waiting:
        start = heapq.heappop(free)
        found.append(start)
        heapq.heappush(free, start + passes.left(request))
    return found
