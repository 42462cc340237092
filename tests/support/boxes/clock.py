"""How does time pass where nothing is computed? Work has bytes and rates, and a clock says when each part of it ends.

What moves or is multiplied at the same time shares the bandwidth of RAM: where there is too little, everybody has the
same part of it, but for who wants less.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

# Bytes of which a float's rounding may leave something.
NOTHING = 1.0


class Blocked(Exception):
    """The mover would stand still here: it is asked again when something has ended."""


@dataclass(slots=True, eq=False)
class Work:
    """`nbytes` that are left, each of them in or out of RAM once, `rate` bytes a second at most."""

    nbytes: float
    rate: float
    ended: Callable[[], None]


def shared(wanted: Sequence[float], there: float) -> list[float]:
    """What each gets of what is there: no more than is wanted, and of what is too little the same."""
    found = [0.0] * len(wanted)
    left = len(wanted)
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        found[index] = min(wanted[index], there / left)
        there -= found[index]
        left -= 1
    return found


class Clock:
    """The time of a box whose RAM moves `memory_rate` bytes a second. It advances only while somebody waits."""

    def __init__(self, memory_rate: float) -> None:
        self.now = 0.0
        self.memory_rate = memory_rate
        # True while the mover decides, which takes no time.
        self.deciding = False
        self._under_way: list[Work] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Calls something at a time; now, at the earliest, when somebody waits."""
        heapq.heappush(self._events, (max(time, self.now), next(self._numbers), call))

    def begin(self, work: Work) -> None:
        """Begins work; `ended` is called at its end."""
        self._under_way.append(work)

    def until(self, reached: Callable[[], bool]) -> None:
        """Waits. Raises AssertionError when nothing is under way that could bring it about."""
        if self.deciding and not reached():
            raise Blocked
        while not reached():
            self._step()

    def _step(self) -> None:
        rates = shared([work.rate for work in self._under_way], self.memory_rate)
        ends = [self.now + work.nbytes / rate for work, rate in zip(self._under_way, rates, strict=True)]
        if self._events and self._events[0][0] <= min(ends, default=self._events[0][0]):
            time, _, call = heapq.heappop(self._events)
            self._advance(time, rates)
            call()
            return
        assert ends, "nothing is under way, and somebody waits"
        self._advance(min(ends), rates)
        done = [work for work in self._under_way if work.nbytes <= NOTHING]
        self._under_way = [work for work in self._under_way if work.nbytes > NOTHING]
        for work in done:
            work.ended()

    def _advance(self, time: float, rates: list[float]) -> None:
        for work, rate in zip(self._under_way, rates, strict=True):
            work.nbytes -= rate * (time - self.now)
        self.now = time


class Ended:
    """The fence of work that a clock knows."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ended = False
        self._then: Callable[[], None] | None = None

    def __str__(self) -> str:
        return "simulated work"

    def end(self) -> None:
        """The work has ended."""
        self.ended = True
        if self._then is not None:
            self._then()

    def then(self, call: Callable[[], None]) -> None:
        """Calls something at the end."""
        self._then = call

    def done(self) -> bool:
        """True once it has."""
        return self.ended

    def wait(self, seconds: float) -> bool:
        """Waits, however long it takes."""
        self.clock.until(self.done)
        return True


class Channel:
    """Moves one thing after the other, at `rate` bytes a second at most, through RAM."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self.clock = clock
        self.rate = rate
        self._busy = 0.0
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._moves = False
        self._began = 0.0

    @property
    def idle(self) -> bool:
        """True while nothing moves."""
        return not self._moves

    @property
    def seconds(self) -> float:
        """The seconds in which something moved, so far."""
        return self._busy + (self.clock.now - self._began if self._moves else 0.0)

    def put(self, nbytes: float, ended: Callable[[], None]) -> None:
        """Moves so many bytes once everything before has moved."""
        self._waiting.append((nbytes, ended))
        if not self._moves:
            self._began = self.clock.now
            self._next()

    def _next(self) -> None:
        nbytes, ended = self._waiting.popleft()
        self._moves = True

        def end() -> None:
            self._moves = False
            if self._waiting:
                self._next()
            else:
                self._busy += self.clock.now - self._began
            ended()

        self.clock.begin(Work(nbytes, self.rate, end))


class Turns(threading.Condition):
    """What a flow's passes and mover wait on for each other, where both are one thread and time is the clock's.

    `decide` is the mover's turn.
    """

    def __init__(self, clock: Clock, decide: Callable[[], None]) -> None:
        super().__init__()
        self.clock = clock
        self.decide = decide

    def notify_all(self) -> None:
        """Has the mover look, as soon as time passes."""
        self.clock.at(self.clock.now, self.decide)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:  # type: ignore[override]
        """Waits, however long it takes."""
        self.clock.until(predicate)
        return True
