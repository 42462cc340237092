"""Which experts stay in memory, and which make room for those that a pass needs? Pure: needs go in, moves come out.

One budget, in slots of a few sizes. An expert's uses count by the rows it served, and count half as much some tokens
later. The one that goes is expected to be needed furthest in the future (Belady, 1966, by expectation): after as many
layers as there are until its own comes again, and as many passes as it will probably be passed over. So a prompt that
needs nearly all experts leaves most of them where they are, and decoding keeps those that are used most. Where the next
layer will surely need an expert, as with the many rows of a prompt, it comes before that is known.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from nvstreamd.kernels.arrays import Doubles, Longs

# Tokens after which a use counts half.
HALF_LIFE = 128.0
# However rarely it was used: so often it is needed.
RAREST = 1e-9
# Layers by which one is further away that another memory has, too.
ELSEWHERE = 1e15
# Experts that make room are found so many at a time.
AT_A_TIME = 16
# So probably the next layer needs an expert that comes before it is asked for; with fewer rows none is looked at.
SURELY, MANY_ROWS = 0.9, 16


@dataclass(frozen=True, slots=True)
class Fetch:
    """The expert of that number comes into a slot of its own size class."""

    expert: int
    slot: int


@dataclass(frozen=True, slots=True)
class Need:
    """The experts of a layer that a pass needs: those that are in memory, and those that are not there yet.

    Of those in memory `ahead` came for this need, before it was known.
    """

    there: tuple[int, ...]
    missing: tuple[int, ...]
    ahead: tuple[int, ...] = ()


class ExpertCache:
    """Experts by number: `per_layer` of each layer, layer after layer. Each is of the size class `classes[number]`.

    `slots` says how many slots each class has; slots count from 0 in each. A row needs `used` of each layer: at first
    all experts are taken to be used alike.
    """

    def __init__(self, per_layer: int, used: int, classes: Sequence[int], slots: Sequence[int],
                 half_life: float = HALF_LIFE) -> None:
        self.layers = len(classes) // per_layer
        self._per_layer = per_layer
        self._free = [deque(range(count)) for count in slots]
        # Of each expert: its class, its slot or -1, whether it is there, how many needs hold it, its uses until then.
        self._class, self._slot = array("q", classes), array("q", [-1]) * len(classes)
        self._there, self._held = array("q", [0]) * len(classes), array("q", [0]) * len(classes)
        self._elsewhere = array("q", [0]) * len(classes)
        self._decay = log(2) / half_life
        self._uses = array("d", [used / per_layer / self._decay]) * len(classes)
        self._used_at = array("d", [0.0]) * len(classes)
        self._now = 0.0
        self._at = -1
        self._rows = self._rows_then = 1
        self._wanted: deque[int] = deque()
        # What the next layer surely needs and nothing brings yet, the nearest first.
        self._ahead: deque[int] = deque()
        self._came_ahead: set[int] = set()
        # Those of each class that go next, the last first: found for several at a time.
        self._victims: list[list[int]] = [[] for _ in slots]
        # What comes into free slots while nobody needs anything: some of each layer first.
        order = sorted(range(len(classes)), key=lambda expert: expert % per_layer)
        self._unseen = [deque(expert for expert in order if classes[expert] == each) for each in range(len(slots))]

    def begin(self, rows: int, then: int) -> None:
        """Begins a pass of so many rows; the next is expected to have `then`."""
        self._now += rows
        self._rows, self._rows_then, self._at = rows, max(1, then), -1

    def need(self, layer: int, rows: Mapping[int, int]) -> Need:
        """A layer needs these experts, each for so many rows; they are held until `done`, or until `forget`."""
        self._at = layer
        there: list[int] = []
        missing: list[int] = []
        self.use(rows)
        for expert in rows:
            self._held[expert] += 1
            (there if self._there[expert] else missing).append(expert)
        if missing:
            for known in self._victims:
                known.clear()
            # Those that most rows wait for come first.
            missing.sort(key=lambda expert: -rows[expert])
            self._wanted.extend(expert for expert in missing if self._slot[expert] < 0)
        self._look_ahead()
        ahead = tuple(self._came_ahead.intersection(there))
        self._came_ahead.difference_update(rows)
        return Need(tuple(there), tuple(missing), ahead)

    def use(self, rows: Mapping[int, int]) -> None:
        """Counts that experts serve so many rows, wherever they lie."""
        for expert, count in rows.items():
            faded = exp(-self._decay * (self._now - self._used_at[expert]))
            self._uses[expert] = self._uses[expert] * faded + count
            self._used_at[expert] = self._now

    def heat(self) -> Doubles:
        """How probably each of all experts is needed by a pass like the next."""
        return self._needed(np.arange(len(self._class)), self._rows_then)

    @property
    def ready(self) -> Longs:
        """The experts that are in memory."""
        return np.flatnonzero(np.frombuffer(self._there, np.int64))

    def hold(self, expert: int) -> None:
        """Keeps an expert that is there until `done`."""
        self._held[expert] += 1

    def lies_elsewhere(self, expert: int, *, elsewhere: bool) -> None:
        """Says of an expert that another memory has it, too: then it is the first to make room here."""
        self._elsewhere[expert] = elsewhere
        for known in self._victims:
            known.clear()

    @property
    def wants(self) -> bool:
        """True while something is needed that nothing brings yet, or will be, and a slot can be had for it."""
        return self._has_room(self._wanted) or self._sees_ahead()

    @property
    def wishes(self) -> bool:
        """True while slots are free that something could be brought into."""
        return any(free and unseen for free, unseen in zip(self._free, self._unseen, strict=True))

    def choose(self) -> Fetch | None:
        """The next expert that is needed, which is under way from now on; None while none is, or there is no room."""
        return self._bring_first(self._wanted) if self._has_room(self._wanted) else None

    def choose_ahead(self) -> Fetch | None:
        """The next that the layer behind this one surely needs, unless something is needed now."""
        if not self._sees_ahead():
            return None
        self._came_ahead.add(self._ahead[0])
        return self._bring_first(self._ahead)

    def _has_room(self, queue: deque[int]) -> bool:
        """True when the first of the queue that nothing brings yet can have a slot."""
        while queue and self._slot[queue[0]] >= 0:
            queue.popleft()
        if not queue:
            return False
        size_class = self._class[queue[0]]
        return bool(self._free[size_class]) or self._victim(size_class) is not None

    def _sees_ahead(self) -> bool:
        if self._wanted or not self._has_room(self._ahead):
            return False
        size_class = self._class[self._ahead[0]]
        victim = None if self._free[size_class] else self._victim(size_class)
        if victim is not None and self._layer_of(victim) == self._layer_of(self._ahead[0]):
            # All others that could go are there for the same reason.
            self._ahead.clear()
        return bool(self._ahead)

    def _bring_first(self, queue: deque[int]) -> Fetch:
        return self._bring(queue[0], self._room_for(queue.popleft()))

    def choose_idle(self) -> Fetch | None:
        """An expert for a slot that was free so far, needed or not."""
        for free, unseen in zip(self._free, self._unseen, strict=True):
            while free and unseen:
                expert = unseen.popleft()
                if self._slot[expert] < 0:
                    return self._bring(expert, free.popleft())
        return None

    def arrived(self, fetch: Fetch) -> None:
        """The expert is in its slot."""
        self._there[fetch.expert] = 1

    def there(self, expert: int) -> bool:
        """True once it is in memory."""
        return bool(self._there[expert])

    def slot(self, expert: int) -> int:
        """The slot of an expert that is there."""
        return self._slot[expert]

    def done(self, expert: int) -> None:
        """One need of the expert is over: it may make room."""
        self._held[expert] -= 1

    def forget(self, experts: Sequence[int]) -> None:
        """A need is over before its end: what nothing brings yet does not come."""
        self._wanted = deque(expert for expert in self._wanted if expert not in experts)
        for expert in experts:
            self.done(expert)

    def _look_ahead(self) -> None:
        """Takes down what the layer behind this one surely needs, of those that are not there."""
        self._ahead.clear()
        layer = (self._at + 1) % self.layers
        rows = self._rows if layer > self._at else self._rows_then
        if rows < MANY_ROWS:
            return
        experts = np.arange(layer * self._per_layer, (layer + 1) * self._per_layer)
        nowhere = (np.frombuffer(self._slot, np.int64) < 0) & (np.frombuffer(self._elsewhere, np.int64) == 0)
        absent = experts[nowhere[experts]]
        needed = self._needed(absent, rows)
        order = np.argsort(-needed, kind="stable")
        self._ahead.extend(absent[order[needed[order] >= SURELY]].tolist())

    def _bring(self, expert: int, slot: int) -> Fetch:
        self._slot[expert] = slot
        return Fetch(expert, slot)

    def _layer_of(self, expert: int) -> int:
        return expert // self._per_layer

    def _room_for(self, expert: int) -> int:
        """A slot of its class, which there is: taken from another expert where none is free."""
        size_class = self._class[expert]
        if self._free[size_class]:
            return self._free[size_class].popleft()
        victim = self._victim(size_class)
        assert victim is not None, "there is room"
        self._victims[size_class].pop()
        self._came_ahead.discard(victim)
        slot, self._slot[victim], self._there[victim] = self._slot[victim], -1, 0
        return slot

    def _victim(self, size_class: int) -> int | None:
        """The expert of a class that goes next, None while none can."""
        known = self._victims[size_class]
        while known and (self._held[known[-1]] or not self._there[known[-1]]):
            known.pop()
        if not known:
            there, held = np.frombuffer(self._there, np.int64), np.frombuffer(self._held, np.int64)
            of_class = np.frombuffer(self._class, np.int64) == size_class
            candidates = np.flatnonzero((there > held) & of_class)
            # Few of a few: others that are let go of meanwhile may be further away.
            count = min(AT_A_TIME, 1 + candidates.size // AT_A_TIME)
            known.extend(candidates[np.argsort(self._distances(candidates), kind="stable")[-count:]].tolist())
        return known[-1] if known else None

    def _distances(self, experts: Longs) -> Doubles:
        """After how many layers each is expected to be needed."""
        layers = experts // self._per_layer
        needed = self._needed(experts, np.where(layers > self._at, self._rows, self._rows_then))
        ahead = (layers - self._at - 1) % self.layers + 1
        return ahead + self.layers * (1 / needed - 1) + ELSEWHERE * np.frombuffer(self._elsewhere, np.int64)[experts]

    def _needed(self, experts: Longs, rows: int | Longs) -> Doubles:
        """How probably each is needed by so many rows."""
        since = self._now - np.frombuffer(self._used_at)[experts]
        a_token = np.frombuffer(self._uses)[experts] * np.exp(-self._decay * since) * self._decay
        return np.maximum(-np.expm1(-a_token * rows), RAREST)
