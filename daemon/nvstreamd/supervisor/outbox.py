"""What waits for a client that does not read? New text is added to the text that waits, up to a bound.

Of progress that nobody has read the last report is kept.
"""

from __future__ import annotations

import asyncio
from collections import deque

from nvstreamd.errors import NotRead, NvstreamError
from nvstreamd.supervisor.events import Delta, Event, Progress

# A whole context of text; of log probabilities some thousand tokens.
MOST_BYTES = 512 << 10
MOST_EVENTS = 1024


class Outbox:
    """Events of one stream, in order. One puts, one gets."""

    def __init__(self) -> None:
        # Each with its size when it was put in.
        self._events: deque[tuple[Event | NvstreamError, int]] = deque()
        self._bytes = 0
        self._there = asyncio.Event()

    def put(self, event: Event | NvstreamError) -> bool:
        """Adds an event. False when too much is unread: then all of it makes way for an error."""
        size = 0 if isinstance(event, NvstreamError) else event.nbytes
        # One event is never too much: with log probabilities, or held back for a stop string, it may be a megabyte.
        if self._events and (self._bytes + size > MOST_BYTES or len(self._events) >= MOST_EVENTS):
            self._events.clear()
            self._bytes = 0
            self._add(NotRead(f"more than {MOST_BYTES} bytes of the stream are unread", "read it, or ask for less"), 0)
            return False
        last, before = self._events[-1] if self._events else (None, 0)
        if isinstance(last, Delta) and isinstance(event, Delta):
            last.join(event)
            event, size = last, before + size
            self._drop_last()
        elif isinstance(last, Progress) and isinstance(event, Progress) and last.phase is event.phase:
            # It says all that the unread one does: a long prompt has thousands of them.
            self._drop_last()
        self._add(event, size)
        return True

    def __aiter__(self) -> Outbox:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises the NvstreamError that is in its place."""
        while not self._events:
            self._there.clear()
            await self._there.wait()
        event, size = self._events.popleft()
        self._bytes -= size
        if isinstance(event, NvstreamError):
            try:
                raise event
            finally:
                # It refers to this frame: together they would stay until garbage is collected.
                del event
        return event

    def _drop_last(self) -> None:
        self._bytes -= self._events.pop()[1]

    def _add(self, event: Event | NvstreamError, size: int) -> None:
        self._events.append((event, size))
        self._bytes += size
        self._there.set()
