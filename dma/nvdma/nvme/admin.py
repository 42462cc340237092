"""How is one admin command carried out, start to end? (NVM Express Base Specification 2.0, section 5)

One at a time, through one data page. A command whose completion never came may still write that page: it blocks all
that follow until the controller is reset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvdma.errors import ControllerFatal
from nvdma.nvme import commands, spec
from nvdma.nvme.queue import Completion, QueuePair, queue_bytes
from nvdma.nvme.spec import Entries
from nvdma.nvme.status import failure
from nvdma.pci.dma import PAGE, DmaMemory
from nvdma.pci.mmio import Registers, wait_until

ENTRIES = 32
# The memory a controller needs: the admin rings and the page for what commands answer.
ADMIN_BYTES = queue_bytes(ENTRIES) + PAGE


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """A controller's event, unasked (section 5.2): the numbers of its type, its information and the log to read."""

    kind: int
    information: int
    log: int


class AdminQueue:
    """Queue 0 and the data page behind it, in the first ADMIN_BYTES of `memory`.

    `check` raises when the controller cannot complete anything any more; it is asked while we wait.
    """

    def __init__(self, registers: Registers, memory: DmaMemory, name: str, *, stride: int,
                 check: Callable[[], None]) -> None:
        self.queue = QueuePair(0, ENTRIES, registers, memory, stride=stride, name=name)
        self._view = memory.view
        self._page_at = queue_bytes(ENTRIES)
        self.page = memory.bus.at(self._page_at)
        self._name = name
        self._check = check
        self._done: dict[int, Completion] = {}
        self._event_requests: set[int] = set()
        self._events: list[AsyncEvent] = []
        self._lost: dict[int, str] = {}

    def run(self, entry: Entries, seconds: float, what: str) -> Completion:
        """Carries out one command. Raises CommandFailed, DeadlineExceeded, DeviceGone, ControllerFatal."""
        self._refuse_after_loss()
        (cid,) = self.queue.submit(entry)
        self._lost[cid] = what  # until it has completed
        wait_until(lambda: self._has_completed(cid), seconds, f"{self._name}: {what} to complete")
        completion = self._done.pop(cid)
        if completion.status:
            raise failure(completion.status, f"{self._name}: {what}")
        return completion

    def fetch(self, entry: Entries, nbytes: int, seconds: float, what: str) -> bytes:
        """Carries out a command that answers into `page`; its first `nbytes`. Raises what `run` raises."""
        # What an earlier command answered must not be taken for an answer that never came.
        self._refuse_after_loss()
        self._view[self._page_at : self._page_at + PAGE] = bytes(PAGE)
        self.run(entry, seconds, what)
        return bytes(self._view[self._page_at : self._page_at + nbytes])

    def request_events(self, count: int) -> None:
        """Lets the controller report `count` more events (section 5.2); each takes a place in the admin queue."""
        for _ in range(count):
            self._event_requests.update(self.queue.submit(commands.async_event_request()))

    def events(self) -> list[AsyncEvent]:
        """The events that the controller reported since the last call; each is asked for anew.

        It reports one of a kind, and no more of that kind until the log it names was read.
        """
        self._reap()
        events, self._events = self._events, []
        self.request_events(len(events))
        return events

    def _refuse_after_loss(self) -> None:
        self._reap()
        self._done.clear()  # nobody waits any more for what came too late
        if self._lost:
            what = next(iter(self._lost.values()))
            raise ControllerFatal(f"{self._name}: {what} never completed and may still write memory",
                                  hint="reset the controller")

    def _has_completed(self, cid: int) -> bool:
        self._reap()
        if cid not in self._done:
            self._check()
        return cid in self._done

    def _reap(self) -> None:
        for completion in self.queue.reap():
            if completion.cid in self._event_requests:
                self._event_requests.remove(completion.cid)
                self._note_event(completion)
            else:
                del self._lost[completion.cid]
                self._done[completion.cid] = completion

    def _note_event(self, completion: Completion) -> None:
        # A request that was refused is no event, and is not made again.
        if not completion.status:
            fields = (spec.EVENT_TYPE, spec.EVENT_INFORMATION, spec.EVENT_LOG)
            self._events.append(AsyncEvent(*(field.get(completion.dw0) for field in fields)))
