"""Who has had how much of the engine? A virtual counter a user: what the passes cost that their requests took part in.

Sheng et al., Fairness in Serving Large Language Models, OSDI 2024. The unit is a second of a pass, divided by the
weight of the user. Pure: no clock, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from math import inf, nextafter

MOST_ABSENT = 1024


def shares_of_pass(counts: Sequence[int], seconds: float, narrow: float) -> list[float]:
    """What each request of a pass caused of its `seconds`, given how many tokens it had in it.

    What a pass takes whatever is in it, its weights, is as large as a `narrow` pass, and everybody's alike. What came
    on top of that is theirs who brought many tokens.
    """
    alike = min(seconds, narrow)
    extra = [count - 1 for count in counts]
    beyond = seconds - alike
    if not sum(extra):
        return [seconds / len(counts)] * len(counts)
    return [alike / len(counts) + beyond * each / sum(extra) for each in extra]


class Counters:
    """What users have been served, in seconds over weight. Who comes back has not saved anything up."""

    def __init__(self) -> None:
        self._served: dict[int, float] = {}
        # Of those who have no request now: only what they are ahead of the others counts on.
        self._absent: OrderedDict[int, float] = OrderedDict()
        self._last_left = 0.0

    def arrive(self, uid: int) -> None:
        """Counts a user in who has requests now: as served as little as anybody, and next among those."""
        if uid in self._served:
            return
        least = min(self._served.values(), default=self._last_left)
        self._served[uid] = max(self._absent.pop(uid, 0.0), nextafter(least, -inf))

    def leave(self, uid: int, present: Collection[int]) -> None:
        """Takes a user out, unless they are among those `present`."""
        if uid in present or uid not in self._served:
            return
        self._last_left = self._absent[uid] = self._served.pop(uid)
        if len(self._absent) > MOST_ABSENT:
            self._absent.popitem(last=False)

    def charge(self, uid: int, seconds: float, weight: float) -> None:
        """Adds what a request of theirs caused."""
        if uid in self._served:
            self._served[uid] += seconds / weight

    def served(self, uid: int) -> float:
        """What a user has been served."""
        return self._served.get(uid, 0.0)
