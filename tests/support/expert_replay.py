"""How often would a cache of experts have had what recorded passes wanted? Routes and a number of slots in, hits out.

Slots serve all layers. A layer's pass needs all its experts at once: what is missing of them comes in, and takes the
slots of what this need does not want. Nothing is passed by: as in an engine, an expert is multiplied where its slot is.
Caches begin empty. Pure.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import log2
from pathlib import Path
from typing import Protocol

# {expert: rows that go to it}, of one layer in one pass.
Need = Mapping[int, int]
# Of each pass the needs of its layers, the first first.
Routes = Sequence[Sequence[Need]]
# Layer and expert.
Place = tuple[int, int]


class Policy(Protocol):
    """What serves needs, one after the other."""

    def need(self, layer: int, experts: Need) -> int:
        """How many of a layer's experts were there. Layers come in order; a pass begins where one is not behind."""


# Slots and the routes to come in, a policy out: only one that knows the future looks at them.
Factory = Callable[[int, Routes], Policy]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was there, and what was needed, by layer."""

    hits: tuple[int, ...]
    needs: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Hits over needs; 1 where nothing was needed."""
        return sum(self.hits) / sum(self.needs) if sum(self.needs) else 1.0


def replay(routes: Routes, slots: int, make: Factory) -> Replayed:
    """Serves all passes. Raises ValueError when a need is larger than the cache: then nobody can serve it at once."""
    layers = max((len(each) for each in routes), default=0)
    hits, needs, policy = [0] * layers, [0] * layers, make(slots, routes)
    for layer, experts in _needs(routes):
        if len(experts) > slots:
            raise ValueError(f"a pass needs {len(experts)} experts of layer {layer} at once, there are {slots} slots")
        hits[layer] += policy.need(layer, experts)
        needs[layer] += len(experts)
    return Replayed(tuple(hits), tuple(needs))


def _needs(routes: Routes) -> Iterator[tuple[int, Need]]:
    for each in routes:
        yield from enumerate(each)


class Scored(ABC):
    """A cache that gives up what has the least score, as subclasses have it.

    Equal scores go by what was needed longest ago, then by layer and expert.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._needed: dict[Place, int] = {}
        self._held: set[Place] = set()
        self._time = 0

    @abstractmethod
    def score(self, place: Place) -> float:
        """The larger, the longer it stays."""

    @abstractmethod
    def saw(self, place: Place, rows: int) -> None:
        """Takes note of a need, of something held or not."""

    def need(self, layer: int, experts: Need) -> int:
        """Serves a need; how many of it were there."""
        self._time += 1
        wanted = {(layer, expert) for expert in experts}
        for expert, rows in experts.items():
            self.saw((layer, expert), rows)
            self._needed[layer, expert] = self._time
        hits = len(wanted & self._held)
        surplus = len(self._held | wanted) - self._slots
        if surplus > 0:
            least = nsmallest(surplus, self._held - wanted, key=self._order)
            self._held.difference_update(least)
        self._held |= wanted
        return hits

    def _order(self, place: Place) -> tuple[float, int, Place]:
        return self.score(place), self._needed[place], place


class LeastRecent(Scored):
    """Gives up what was needed longest ago."""

    def score(self, place: Place) -> float:
        """All alike: the time of the last need decides."""
        return 0.0

    def saw(self, place: Place, rows: int) -> None:
        """Nothing: the time of the last need is noted anyway."""


class LeastFrequent(Scored):
    """Gives up what fewest passes needed since the beginning, however many rows they had."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self._counts: dict[Place, int] = defaultdict(int)

    def score(self, place: Place) -> float:
        """Its passes."""
        return self._counts[place]

    def saw(self, place: Place, rows: int) -> None:
        """One more."""
        self._counts[place] += 1


class Ageing(Scored):
    """Gives up what was needed least often, where a need counts half as much after every `half_life` passes."""

    def __init__(self, slots: int, half_life: float) -> None:
        super().__init__(slots)
        self._half_life = half_life
        self._passes = 0
        self._layer = -1
        # Logarithms of the counts as if all needs were of pass 0: their order holds while time goes on.
        self._levels: dict[Place, float] = {}

    def score(self, place: Place) -> float:
        """The logarithm, to the base 2, of its decayed count, and a constant."""
        return self._levels[place]

    def saw(self, place: Place, rows: int) -> None:
        """One more, of a weight that grows with time instead of the older ones' falling."""
        now = self._passes / self._half_life
        before = self._levels.get(place, float("-inf"))
        self._levels[place] = now + log2(1 + 2 ** (before - now))

    def need(self, layer: int, experts: Need) -> int:
        """Serves a need; a pass begins where the layer is not behind the last."""
        self._passes += layer <= self._layer
        self._layer = layer
        return super().need(layer, experts)


class Belady(Scored):
    """Gives up what is needed last again, or never: no cache that knows the future has more hits (Belady, 1966)."""

    def __init__(self, slots: int, routes: Routes) -> None:
        super().__init__(slots)
        self._following = _next_needs(routes)
        self._next: dict[Place, float] = {}
        self._at = -1

    def score(self, place: Place) -> float:
        """The sooner it is needed, the larger."""
        return -self._next[place]

    def saw(self, place: Place, rows: int) -> None:
        """It is needed next when the routes say so."""
        self._next[place] = self._following[self._at][place]

    def need(self, layer: int, experts: Need) -> int:
        """Serves the next need of the routes."""
        self._at += 1
        return super().need(layer, experts)


def _next_needs(routes: Routes) -> list[dict[Place, float]]:
    """Of each need, when each of its experts is needed again: the number of that need, or infinity."""
    needs = list(_needs(routes))
    following: list[dict[Place, float]] = [{} for _ in needs]
    last: dict[Place, float] = {}
    for at in range(len(needs) - 1, -1, -1):
        layer, experts = needs[at]
        following[at] = {(layer, expert): last.get((layer, expert), float("inf")) for expert in experts}
        last.update(dict.fromkeys(following[at], at))
    return following


def half_life(passes: float) -> Factory:
    """Ageing by so many passes."""
    return lambda slots, _: Ageing(slots, passes)


# By the name that a table has for it.
BEST = "Belady"
POLICIES: Mapping[str, Factory] = {
    "LRU": lambda slots, _: LeastRecent(slots),
    "LFU": lambda slots, _: LeastFrequent(slots),
    **{f"ageing {passes}": half_life(passes) for passes in (16, 64, 256)},
    BEST: Belady,
}


def save(path: Path, routes: Routes) -> None:
    """Writes routes as JSON, a pass a line: of each layer {expert: rows}."""
    path.write_text("[\n" + ",\n".join(json.dumps([dict(need) for need in each]) for each in routes) + "\n]\n")


def load(path: Path) -> list[list[Need]]:
    """What `save` wrote."""
    return [[{int(expert): rows for expert, rows in need.items()} for need in each]
            for each in json.loads(path.read_text())]
