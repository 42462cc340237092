"""Which experts lie in a device's own memory, beside those in the host's? Pure: needs go in, moves come out.

Most slots keep those that are used most: one comes when it is clearly hotter than the coldest there. A few are for
experts that many rows want in one pass: those pass through, so that no prompt drives out what decoding needs.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nvstreamd.kernels.arrays import Doubles, Longs

# Slots of each class that experts pass through.
PASSING = 4
# So many times as probably needed as one that is there: to bring another for less would go back and forth.
HOTTER = 1.25
# Those that change places are found so many at a time.
AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Promotion:
    """The expert of that number comes from host memory into a slot of its size class, to stay or to pass through.

    Whoever lay in the slot is `gone`, -1 where it was free.
    """

    expert: int
    slot: int
    stays: bool
    gone: int = -1


class NearCache:
    """Experts by number, of size `classes[number]`; `slots` says how many each class has, slots count from 0 in each.

    The last PASSING of each class are passed through, or half of them where there are few.
    """

    def __init__(self, classes: Sequence[int], slots: Sequence[int]) -> None:
        passing = [min(PASSING, (count + 1) // 2) for count in slots]
        self._stays = [count - few for count, few in zip(slots, passing, strict=True)]
        self._free = [deque(range(count)) for count in self._stays]
        self._passing = [deque(range(stays, count)) for stays, count in zip(self._stays, slots, strict=True)]
        # Of each expert: its class, its slot or -1, whether it is there, how many needs hold it.
        self._class, self._slot = array("q", classes), array("q", [-1]) * len(classes)
        self._there, self._held = array("q", [0]) * len(classes), array("q", [0]) * len(classes)
        self._wanted: deque[int] = deque()
        # (who comes, whose slot it gets or -1), the last first.
        self._changes: list[tuple[int, int]] = []

    def take(self, experts: Iterable[int]) -> tuple[int, ...]:
        """Those of the experts that are there; they are held until `done`."""
        found = tuple(expert for expert in experts if self._there[expert])
        for expert in found:
            self._held[expert] += 1
        return found

    def pass_through(self, experts: Sequence[int]) -> None:
        """These are to come for one need, in that order; they are held until `done`."""
        for expert in experts:
            self._held[expert] += 1
        self._wanted.extend(experts)

    def there(self, expert: int) -> bool:
        """True once it is there."""
        return bool(self._there[expert])

    def slot(self, expert: int) -> int:
        """The slot of an expert that is there."""
        return self._slot[expert]

    def wants(self, ready: Callable[[int], bool]) -> bool:
        """True while there is something to choose, now or for an idle link."""
        return bool(self._changes) or any(
            self._slot[expert] >= 0 or (self._passing[self._class[expert]] and ready(expert))
            for expert in self._wanted)

    def choose(self, ready: Callable[[int], bool]) -> Promotion | None:
        """The next to pass through, of those that are `ready` in host memory; it is under way from now on."""
        for expert in self._wanted:
            if self._slot[expert] >= 0:
                # It comes to stay: nothing more is to be done.
                self._wanted.remove(expert)
                return self.choose(ready)
            free = self._passing[self._class[expert]]
            if free and ready(expert):
                self._wanted.remove(expert)
                self._slot[expert] = free.popleft()
                return Promotion(expert, self._slot[expert], stays=False)
        return None

    def look(self, heat: Doubles, ready: Longs) -> None:
        """Finds out who should be there, by how probably experts [all] are needed; `ready` are in host memory."""
        self._changes.clear()
        slots, held = np.frombuffer(self._slot, np.int64), np.frombuffer(self._held, np.int64)
        classes, there = np.frombuffer(self._class, np.int64), np.frombuffer(self._there, np.int64)
        for size_class, stays in enumerate(self._stays):
            coming = ready[(classes[ready] == size_class) & (slots[ready] < 0)]
            coming = coming[np.argsort(-heat[coming], kind="stable")[:AT_A_TIME]].tolist()
            going = np.flatnonzero((classes == size_class) & (there == 1) & (held == 0) & (slots < stays))
            going = going[np.argsort(heat[going], kind="stable")[:AT_A_TIME]].tolist()
            free = len(self._free[size_class])
            pairs = [(expert, -1) for expert in coming[:free]]
            pairs += [(hot, cold) for hot, cold in zip(coming[free:], going, strict=False)
                      if heat[hot] > HOTTER * heat[cold]]
            self._changes += reversed(pairs)

    def choose_idle(self, ready: Callable[[int], bool]) -> Promotion | None:
        """The next that comes to stay, under way from now on; whoever lay in its slot is gone."""
        while self._changes:
            hot, cold = self._changes.pop()
            if self._slot[hot] >= 0 or not ready(hot):
                continue
            if cold < 0:
                if not self._free[self._class[hot]]:
                    continue
                self._slot[hot] = self._free[self._class[hot]].popleft()
            else:
                if self._held[cold] or not self._there[cold]:
                    continue
                self._slot[hot], self._slot[cold], self._there[cold] = self._slot[cold], -1, 0
            return Promotion(hot, self._slot[hot], stays=True, gone=cold)
        return None

    def arrived(self, promotion: Promotion) -> None:
        """It is there; who only passes through, and is not wanted any more, is gone at once."""
        self._there[promotion.expert] = 1
        self._leave(promotion.expert)

    def done(self, expert: int) -> None:
        """One need of the expert is over."""
        self._held[expert] -= 1
        self._leave(expert)

    def forget(self, experts: Sequence[int]) -> None:
        """A need is over before its end: what is not under way does not come."""
        self._wanted = deque(expert for expert in self._wanted if expert not in experts)
        for expert in experts:
            self.done(expert)

    def _leave(self, expert: int) -> None:
        size_class, slot = self._class[expert], self._slot[expert]
        if self._there[expert] and not self._held[expert] and slot >= self._stays[size_class]:
            self._slot[expert], self._there[expert] = -1, 0
            self._passing[size_class].append(slot)
