"""When has a card done what it was given? A fence over an event of its driver."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from nvdma.gpu.driver import Driver

# How long a thread asks without pause whose wait a user feels: a pass of a small model takes a millisecond, and to
# sleep takes the kernel 50 microseconds.
EAGER_SECONDS = 2e-3


@dataclass(slots=True, eq=False)
class Event:
    """The driver's event, and how often it was recorded."""

    handle: int
    recorded: int = 0


@dataclass(frozen=True, slots=True)
class EventFence:
    """`what` was put into the stream before the event was recorded for the time `turn`.

    An event is recorded anew only when it has happened (`Events`): whoever finds a later turn knows that this is done.
    """

    driver: Driver
    event: Event
    turn: int
    stream: int
    what: str
    eager: float

    def __str__(self) -> str:
        return self.what

    def done(self) -> bool:
        """True once all work before the event has ended. Raises GpuFailed."""
        return self.event.recorded != self.turn or self.driver.happened(self.event.handle)

    def wait(self, seconds: float) -> bool:
        """Waits that long at most. Raises GpuFailed."""
        # The last question is for an event that was recorded anew, for later work, while it was waited for.
        return self.done() or self.driver.wait(self.event.handle, seconds, self.eager) or self.done()

    def hold(self, stream: int) -> None:
        """What comes into the stream from here on begins after the fence; nobody waits meanwhile. Raises GpuFailed."""
        if stream != self.stream and self.event.recorded == self.turn:
            self.driver.await_event(stream, self.event.handle)


class Events:
    """Hands out fences over `count` events in turn; more, where the oldest has not happened yet. Any thread may ask.

    Whoever waits for one asks without pause for `eager` seconds.
    """

    def __init__(self, driver: Driver, count: int, eager: float = EAGER_SECONDS) -> None:
        self.driver = driver
        self.eager = eager
        self._lock = threading.Lock()
        self._oldest_first = deque(Event(driver.event()) for _ in range(count))

    def record(self, stream: int, what: str) -> EventFence:
        """A fence behind all that is in the stream so far. Raises GpuFailed."""
        with self._lock:
            event = self._one_that_happened()
            event.recorded += 1
            self.driver.record(event.handle, stream)
            self._oldest_first.append(event)
            return EventFence(self.driver, event, event.recorded, stream, what, self.eager)

    def _one_that_happened(self) -> Event:
        # A fence over one that has not would be done when what is recorded next is, in another stream perhaps.
        if self._oldest_first and self.driver.happened(self._oldest_first[0].handle):
            return self._oldest_first.popleft()
        return Event(self.driver.event())
