"""How do activations come from a card to the processor, and back? Through host memory that the card reaches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvdma.gpu.driver import Driver
from nvdma.gpu.event import EventFence, Events
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import wait_for
from nvstreamd.kernels.gpu_pass import Desk
from nvstreamd.kernels.gpu_take import Taker

# Copies to the card that may be on their way at once: a layer's q, k and v, and what comes next.
DESKS = 4


class Exchange:
    """Work in the stream that computes. `close` gives back what it took."""

    def __init__(self, driver: Driver, taker: Taker, stream: int, events: Events) -> None:
        self.driver = driver
        self.taker = taker
        self.stream = stream
        self.events = events
        self._back = Desk(driver)
        self._desks = [Desk(driver) for _ in range(DESKS)]
        self._sent: list[EventFence | None] = [None] * DESKS
        self._turn = 0

    def fetch(self, address: int, into: Floats) -> None:
        """Waits for all work before, and fills `into` (contiguous) from VRAM."""
        self.fetch_all([(address, into)])

    def fetch_all(self, wanted: Sequence[tuple[int, Floats]]) -> None:
        """The same of several addresses, and what is to be filled from each: one wait for all."""
        wanted = [each for each in wanted if each[1].nbytes]
        if not wanted:
            return
        at, view = self._back.bytes(sum(into.nbytes for _, into in wanted))
        with view:
            begin = at
            for address, into in wanted:
                self.driver.copy(begin, address, into.nbytes, self.stream)
                begin += into.nbytes
            wait_for(self.events.record(self.stream, "what was computed"))
            found = np.frombuffer(view, np.float32)
            for _, into in wanted:
                into.reshape(-1)[:], found = found[: into.size], found[into.size :]
            # The view is let go of: so must be what looks at it.
            del found

    def send(self, address: int, content: Floats) -> None:
        """Begins to bring `content` (contiguous) to VRAM; it may be changed at once."""
        if not content.nbytes:
            return
        turn, self._turn = self._turn, (self._turn + 1) % DESKS
        sent = self._sent[turn]
        if sent is not None:
            wait_for(sent)
        at, view = self._desks[turn].bytes(content.nbytes)
        with view:
            np.frombuffer(view, np.float32)[:] = content.reshape(-1)
        self.taker.take(address, at, content.nbytes)
        self._sent[turn] = self.events.record(self.stream, "what the processor has found")

    def close(self) -> None:
        """Gives host memory back."""
        for desk in (self._back, *self._desks):
            desk.close()
