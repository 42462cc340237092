"""How is an NVMe controller opened, asked, given queues, and closed so that nothing of ours is written afterwards?"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from nvdma.errors import CommandFailed, ControllerFatal, ControllerRefused, DeviceGone, DmaError, NamespaceRefused
from nvdma.nvme import commands, spec
from nvdma.nvme.admin import ADMIN_BYTES, ENTRIES, AdminQueue, AsyncEvent
from nvdma.nvme.health import ErrorEntry, Health, parse_error_log, parse_health
from nvdma.nvme.identify import (
    ControllerFacts,
    NamespaceFacts,
    parse_active_namespaces,
    parse_controller,
    parse_namespace,
)
from nvdma.nvme.power import Power
from nvdma.nvme.queue import Completion, QueuePair, completion_entries
from nvdma.nvme.spec import Entries
from nvdma.pci.dma import PAGE, DmaMemory
from nvdma.pci.mmio import Registers

LOG = logging.getLogger(__name__)
MOST_EVENT_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that an admin command may take, and at least those that a normal shutdown may."""

    admin: float = 10.0
    shutdown: float = 5.0


class Controller:
    """One controller, `name` in messages, through its registers and the first ADMIN_BYTES of `memory`.

    It allocates nothing; `memory` must stay mapped until what `open` left on the stack has run. `queues` is how many
    I/O queue pairs to ask for. One thread uses it. After `open`: `facts`, `namespaces` (those we can read, in the order
    of their identifiers) and `queue_limit`, the pairs that were granted. After DeviceGone nothing helps; after
    ControllerFatal, UnknownCompletion or DeadlineExceeded `reset` may, and every queue must be created again.
    """

    facts: ControllerFacts
    namespaces: tuple[NamespaceFacts, ...]
    queue_limit: int

    def __init__(self, registers: Registers, memory: DmaMemory, name: str, *, queues: int = 4,
                 deadlines: Deadlines | None = None) -> None:
        if memory.nbytes < ADMIN_BYTES:
            raise ValueError(f"{name}: {memory.nbytes} bytes of memory are less than {ADMIN_BYTES}")
        self.name = name
        self._registers = registers
        self._memory = memory
        self._wanted_queues = queues
        self._deadlines = deadlines or Deadlines()
        self._power = Power(registers, name)
        self._queues: dict[int, QueuePair] = {}
        self._refused: dict[int, NamespaceRefused] = {}
        self._admin: AdminQueue | None = None  # while the controller may reach our memory
        self._capabilities = 0

    def open(self, stack: ExitStack) -> None:
        """Resets and starts the controller, whatever state it is in, and asks what it is; `stack` gets `shutdown`.

        Raises ControllerRefused, DeviceGone, ControllerFatal, DeadlineExceeded or CommandFailed; it is stopped then.
        """
        self._start()
        stack.callback(self.shutdown)

    def reset(self) -> None:
        """Stops the controller and starts it again. Raises what `open` raises; every queue is closed in any case."""
        self.quiesce()
        self._start()

    def check(self) -> None:
        """Raises DeviceGone or ControllerFatal when the running controller cannot go on."""
        self._power.check_running()

    def quiesce(self) -> None:
        """Stops the controller at once: no read or write of memory follows, queues are closed, commands forgotten.

        Raises DeadlineExceeded when it does not stop: then only a reset of the function, or its IOMMU, keeps it from
        memory. A controller that is gone has stopped.
        """
        try:
            self._power.disable()
        except DeviceGone as error:
            LOG.warning("%s", error)
        finally:
            self._close_queues()

    def shutdown(self) -> None:
        """Deletes the queues, lets the drive save its state, stops it; does nothing when it is stopped already.

        What fails on the way is logged. Raises DeadlineExceeded when it does not stop, see `quiesce`.
        """
        if self._admin is None:
            return
        for step in (self._delete_queues, self._notify_shutdown):
            try:
                step()
            except DeviceGone:
                break  # quiesce notices it as well, and says so
            except DmaError as error:
                LOG.warning("%s: no orderly shutdown: %s", self.name, error)
        self.quiesce()

    def namespace(self, nsid: int) -> NamespaceFacts:
        """A namespace. Raises NamespaceRefused, saying why it cannot be read or that it is not there."""
        if nsid in self._refused:
            raise self._refused[nsid]
        for found in self.namespaces:
            if found.nsid == nsid:
                return found
        there = ", ".join(str(found.nsid) for found in self.namespaces) or "none"
        raise NamespaceRefused(f"{self.name}: namespace {nsid} is not active", hint=f"choose another ({there})")

    def create_queue(self, memory: DmaMemory, entries: int, vector: int | None = None) -> QueuePair:
        """A new I/O queue pair in the first `queue_bytes(entries)` of `memory`; `vector` is its MSI-X vector, if any.

        The memory must outlive the queue: it is mapped before `open`, so that a stack unmaps it after `shutdown`.
        Raises ControllerRefused when the controller has no such queue left, and what `admin` raises.
        """
        largest = spec.CAP_MQES.get(self._capabilities) + 1
        free = [qid for qid in range(1, self.queue_limit + 1) if qid not in self._queues]
        if entries > largest or not free:
            raise ControllerRefused(f"{self.name}: no queue of {entries} entries; it has {self.queue_limit} queues of "
                                    f"up to {largest}, {len(free)} of them free", hint="use fewer or smaller queues")
        queue = QueuePair(free[0], entries, self._registers, memory, stride=self._stride, name=self.name,
                          completions=min(completion_entries(entries), largest))
        with ExitStack() as undo:
            undo.callback(queue.close)
            queue.open()
            self._announce(queue, vector)
            undo.pop_all()
        self._queues[queue.qid] = queue
        return queue

    def delete_queue(self, queue: QueuePair) -> None:
        """Takes a queue pair away; commands that were outstanding are over, done or not. Raises what `admin` raises."""
        self._run(commands.delete_submission_queue(queue.qid), f"Delete I/O Submission Queue {queue.qid}")
        self._run(commands.delete_completion_queue(queue.qid), f"Delete I/O Completion Queue {queue.qid}")
        del self._queues[queue.qid]
        queue.close()

    def abort(self, queue: QueuePair, cid: int) -> bool:
        """True when the controller aborted a command, which then completes with that status (section 5.1).

        When it did not, the command may still complete in any way. Raises what `admin` raises.
        """
        answer = self._run(commands.abort(queue.qid, cid), f"Abort of {queue.name} command {cid:#06x}")
        return not spec.ABORT_FAILED.get(answer.dw0)

    def health(self) -> Health:
        """The SMART log. Raises what `admin` raises."""
        return parse_health(self._fetch_log(spec.LOG_SMART, spec.SMART_BYTES, "SMART / Health Information"))

    def error_log(self) -> tuple[ErrorEntry, ...]:
        """The newest entries of the error log, at most a page of them. Raises what `admin` raises."""
        nbytes = min(self.facts.error_entries * spec.ERROR_BYTES, PAGE)
        return parse_error_log(self._fetch_log(spec.LOG_ERROR, nbytes, "Error Information"))

    def events(self) -> list[AsyncEvent]:
        """The events that the controller reported unasked since the last call (section 5.2)."""
        return self._opened.events()

    def admin(self, entry: Entries, seconds: float, what: str = "admin command") -> Completion:
        """Carries out one admin command, named `what` in messages.

        Raises CommandFailed, DeadlineExceeded, DeviceGone and ControllerFatal; after DeadlineExceeded only `reset`
        or `shutdown` are of use, because the command may still write memory.
        """
        return self._opened.run(entry, seconds, what)

    @property
    def _opened(self) -> AdminQueue:
        if self._admin is None:
            raise ControllerFatal(f"{self.name}: it is stopped", hint="open or reset it")
        return self._admin

    @property
    def _stride(self) -> int:
        return spec.CAP_DSTRD.get(self._capabilities)

    def _start(self) -> None:
        with ExitStack() as undo:
            self._capabilities = self._power.capabilities()
            # It may be running, for somebody before us: it must stop before it learns our addresses.
            self._power.disable()
            self._admin = AdminQueue(self._registers, self._memory, self.name, stride=self._stride, check=self.check)
            undo.callback(self.quiesce)
            rings = self._admin.queue
            rings.open()
            self._power.enable(rings.submission_ring, rings.completion_ring, ENTRIES)
            self._identify()
            self._admin.request_events(min(self.facts.async_events, MOST_EVENT_REQUESTS))
            undo.pop_all()

    def _identify(self) -> None:
        self.facts = parse_controller(self._fetch_identify(spec.CNS_CONTROLLER, 0, "Identify Controller"), self.name)
        granted = self._run(commands.set_queue_count(self._wanted_queues), "Set Features, Number of Queues").dw0
        # It may grant more than was asked for.
        self.queue_limit = min(spec.QUEUES_NSQ.get(granted) + 1, spec.QUEUES_NCQ.get(granted) + 1, self._wanted_queues)
        listed = self._fetch_identify(spec.CNS_ACTIVE_NAMESPACES, 0, "Identify, active namespaces")
        namespaces: list[NamespaceFacts] = []
        self._refused.clear()
        for nsid in parse_active_namespaces(listed, self.facts.namespaces):
            data = self._fetch_identify(spec.CNS_NAMESPACE, nsid, f"Identify Namespace {nsid}")
            try:
                namespaces.append(parse_namespace(data, nsid))
            except NamespaceRefused as error:
                self._refused[nsid] = error
        self.namespaces = tuple(namespaces)

    def _announce(self, queue: QueuePair, vector: int | None) -> None:
        qid = queue.qid
        self._run(commands.create_completion_queue(qid, queue.completions, queue.completion_ring, vector),
                  f"Create I/O Completion Queue {qid}")
        try:
            self._run(commands.create_submission_queue(qid, queue.entries, queue.submission_ring),
                      f"Create I/O Submission Queue {qid}")
        except CommandFailed:
            self._run(commands.delete_completion_queue(qid), f"Delete I/O Completion Queue {qid}")
            raise

    def _delete_queues(self) -> None:
        for queue in list(self._queues.values()):
            self.delete_queue(queue)

    def _notify_shutdown(self) -> None:
        self._power.notify_shutdown(max(self.facts.shutdown_seconds, self._deadlines.shutdown))

    def _close_queues(self) -> None:
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()
        if self._admin is not None:
            self._admin.queue.close()
        self._admin = None

    def _run(self, entry: Entries, what: str) -> Completion:
        return self._opened.run(entry, self._deadlines.admin, what)

    def _fetch_identify(self, cns: int, nsid: int, what: str) -> bytes:
        return self._opened.fetch(commands.identify(cns, nsid, self._opened.page), PAGE, self._deadlines.admin, what)

    def _fetch_log(self, log: int, nbytes: int, what: str) -> bytes:
        entry = commands.get_log_page(log, nbytes, self._opened.page)
        return self._opened.fetch(entry, nbytes, self._deadlines.admin, f"Get Log Page, {what}")
