"""Who has had how much of the engine? Each user has a virtual counter: the cost of the passes that served them.

Sheng et al., Fairness in Serving Large Language Models, OSDI 2024. The unit is a second of a pass, divided by the
weight of the user. Pure: no clock, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from math import inf, nextafter

MOST_ABSENT = 1024


def shares_of_pass(counts: Sequence[int], seconds: float, narrow: float, waits: Sequence[float] = ()) -> list[float]:
    """The part of a pass's `seconds` that each of its requests caused, given how many tokens it had in it.

    Every pass reads and multiplies the weights once, which costs as much as a `narrow` pass: all requests share that
    part alike. What the pass cost beyond it is shared by those who brought more than one token. Where it stood still
    for what requests alone needed, for so long as `waits` says of each, that is theirs.
    """
    waited = sum(waits)
    if waited:
        others = shares_of_pass(counts, max(0.0, seconds - waited), narrow)
        return [each + own for each, own in zip(others, waits, strict=True)]
    alike = min(seconds, narrow)
    extra = [count - 1 for count in counts]
    beyond = seconds - alike
    if not sum(extra):
        return [seconds / len(counts)] * len(counts)
    return [alike / len(counts) + beyond * each / sum(extra) for each in extra]


class Tally:
    """The service that users of one class had, in seconds over weight. A user who comes back has saved nothing up."""

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

    def charge(self, costs: Mapping[int, float], wanting: Collection[int]) -> None:
        """Adds what a pass cost, in seconds over weight, to those of `costs` who are here.

        Who is not `wanting` more than they get saves nothing up: they rise at least as far as whoever of the wanting
        has had least. Else one long stream in the corner would earn the right to hold up everybody for as long.
        """
        after = {uid: served + costs.get(uid, 0.0) for uid, served in self._served.items()}
        least = [uid for uid in wanting if uid in after]
        if least:
            rise = min(after[uid] for uid in least) - min(self._served[uid] for uid in least)
        else:
            rise = max(after.values(), default=0.0) - max(self._served.values(), default=0.0)
        self._served = {uid: now if uid in wanting else max(now, self._served[uid] + rise)
                        for uid, now in after.items()}

    def served(self, uid: int) -> float:
        """The service that a user has had, in seconds over weight."""
        return self._served.get(uid, 0.0)
