"""How are bytes read from a drive that is ours, without the kernel, its page cache or a copy?

The drive writes where its commands point: into the arena (`nvme_host`), or into a window of a GPU's memory
(`nvme_vram`); only the addresses differ. Reads become commands of a queue that we poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from nvdma.arena import Arena
from nvdma.backends.nvme_reads import Begin, DriveReads
from nvdma.errors import BackendUnavailable, CommandRefused, DeadlineExceeded, DmaError, InvalidRead
from nvdma.ledger import Ledger, Pending
from nvdma.nvme.drive import Drive
from nvdma.nvme.status import failure
from nvdma.pci.dma import PAGE, BusAddresses
from nvdma.types import BackendFacts, Completion, Read, Source

MAX_READ = 2 << 20
# A page for a list is kept for so much of the arena: lists take less than a hundredth of it.
BYTES_A_LIST = 512 << 10
# Between two looks at the queues we sleep as long as this part of what is under way should take: the rest keeps the
# drive busy meanwhile, and what completed is answered with one doorbell.
PART_SLEPT_OVER = 0.25
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 20e-6, 10e-3
# A wait hands out so much of what a drive may have at once: the commands that follow are under way while we look at the
# others. All at once, drive and caller would take turns.
PART_HANDED_OUT = 0.5
PACE_WEIGHT = 0.25
# Silence after which a drive is asked whether it is still there: a register is slow to read.
SILENCE_SECONDS = 0.05

Destination = Callable[[Drive, ExitStack], BusAddresses]


@dataclass(frozen=True, slots=True)
class OnDrive:
    """Where a source lies: it begins at byte `offset`, a multiple of 4096, of namespace `nsid` of drive `drive`."""

    drive: int
    nsid: int
    offset: int


class NvmeBackend:
    """Reads sources from drives through our own queues; the contract is that of `nvdma.backend.Backend`.

    `places` says where each of `sources` lies on `drives`. A source whose place is None lies on no drive, and a read
    of it is refused. `target` returns the addresses under which a drive reaches the arena, or the memory that takes
    its place. A drive works on as many commands at once as its `depth` says. A read never spans two drives.
    """

    def __init__(self, name: str, drives: Sequence[Drive], places: Sequence[OnDrive | None], sources: Sequence[Source],
                 arena: Arena, *, target: Destination | None = None) -> None:
        depth = sum(drive.depth for drive in drives)
        self.facts = BackendFacts(name, depth, MAX_READ, PAGE, True, True)
        self._drives = tuple(drives)
        self._places = tuple(places)
        self._sources = tuple(sources)
        self._arena = arena
        self._target = target or self._into_arena
        self._placed = frozenset(source for source, place in enumerate(places) if place is not None)
        self._ledger = Ledger(self.facts, self._sources, arena.nbytes)
        self._of_drives: list[DriveReads] = []
        self._stack = ExitStack()
        self._is_open = False
        self._pace = 0.0  # seconds from one completion to the next, of late
        self._last = 0.0
        self._most = depth

    @property
    def in_flight(self) -> int:
        """Number of reads whose outcome has not been handed out."""
        return self._ledger.in_flight

    def open(self) -> None:
        """Starts the drives and lets them reach the target. Raises BackendUnavailable."""
        if self._is_open:
            raise RuntimeError("the backend is open already")
        try:
            with ExitStack() as stack:
                self._of_drives = [self._open_drive(number, stack) for number in range(len(self._drives))]
                self._check_places()
                self._stack = stack.pop_all()
        except BackendUnavailable:
            raise
        except DmaError as error:
            raise BackendUnavailable(str(error), hint=error.hint) from error
        limits = [drive.controller.facts.max_transfer or MAX_READ for drive in self._drives]
        # A drive may have agreed to less than it was asked for when it was opened.
        depths = [drive.depth for drive in self._drives]
        self.facts = replace(self.facts, max_read=min(MAX_READ, *limits), depth=sum(depths))
        self._ledger = Ledger(self.facts, self._sources, self._arena.nbytes)
        self._most = max(1, int(PART_HANDED_OUT * min(depths)))
        self._is_open = True

    def submit(self, reads: Sequence[Read]) -> None:
        """Starts `reads`, all or none. Raises QueueFull and InvalidRead, the latter also for a source on no drive."""
        if not self._ledger.outstanding:
            self._last = time.monotonic()
        nowhere = {read.source for read in reads} - self._placed
        if nowhere:
            raise InvalidRead(f"source {min(nowhere)} is on none of the drives")
        admitted = self._ledger.admit(reads)
        for own in self._of_drives:
            own.submit(admitted)

    def poll(self) -> list[Completion]:
        """The reads completed since the last call, perhaps none. Raises CommandRefused, one at a time."""
        self._reap(self.facts.depth)
        return self._ledger.take()

    def wait(self, timeout: float) -> list[Completion]:
        """At least one completion within `timeout` seconds.

        Raises what `poll` raises; DeadlineExceeded; NothingInFlight when there is no read to wait for. DeviceGone and
        ControllerFatal end all reads in flight: the backend can then only be closed.
        """
        self._ledger.check_waitable()
        if not self._reap(self._most):
            self._wait_until(time.monotonic() + timeout, timeout)
        return self._ledger.take()

    def close(self) -> None:
        """Stops the drives, then gives the memory back. Calling it again does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._ledger.clear()
        self._stack.close()
        self._of_drives = []

    def _wait_until(self, deadline: float, timeout: float) -> None:
        while not self._reap(self._most):
            now = time.monotonic()
            if now - self._last > SILENCE_SECONDS:
                for own in self._of_drives:
                    own.drive.controller.check()
            if now > deadline:
                raise DeadlineExceeded(self._ledger.describe_outstanding(), timeout)
            self._pause()

    def _pause(self) -> None:
        # What waits for a free command of its drive does not make the others' take longer.
        pause = PART_SLEPT_OVER * sum(len(own.flights) for own in self._of_drives) * self._pace
        time.sleep(min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))

    def _open_drive(self, number: int, stack: ExitStack) -> DriveReads:
        drive = self._drives[number]
        target = self._target(drive, stack)
        drive.open(stack, self._arena.nbytes // BYTES_A_LIST)
        namespace = drive.controller.namespace
        own = DriveReads(drive, target, {
            source: Begin(place.nsid, place.offset, namespace(place.nsid).block_bytes)
            for source, place in enumerate(self._places) if place and place.drive == number})
        stack.callback(own.close)
        return own

    def _into_arena(self, drive: Drive, stack: ExitStack) -> BusAddresses:
        return drive.access.map_memory(self._arena.view, self._arena.address, stack).bus

    def _check_places(self) -> None:
        for source, place in zip(self._sources, self._places, strict=True):
            if place is None:
                continue
            namespace = self._drives[place.drive].controller.namespace(place.nsid)
            end = place.offset + -(-source.size // PAGE) * PAGE
            if place.offset % PAGE or end > namespace.nbytes:
                raise BackendUnavailable(
                    f"{source.path}: bytes {place.offset} to {end} are not on a namespace of {namespace.nbytes} bytes",
                    hint="the drive is not the one the model was imported onto: import it again")

    def _reap(self, most: int) -> bool:
        count = 0
        for own in self._of_drives:
            count += self._note(own, most)
        if count:
            now = time.monotonic()
            self._pace += PACE_WEIGHT * ((now - self._last) / count - self._pace)
            self._last = now
        return self._ledger.has_outcomes

    def _note(self, own: DriveReads, most: int) -> int:
        found = own.drive.queue.reap_plain(most)
        arrived: list[Pending] = []
        for cid, status, _ in found:
            pending = own.landed(cid)
            if not status:
                arrived.append(pending)
                continue
            # Outcomes are handed out in the order in which they came.
            self._ledger.arrived(arrived)
            arrived = []
            read = pending.read
            cause = failure(status, f"{own.drive.name}: Read", lba=own.lba(read))
            path = self._sources[read.source].path
            self._ledger.refuse(read.tag, CommandRefused(path, read.offset, cause, tag=read.tag))
        self._ledger.arrived(arrived)
        if own.waiting:
            own.send()
        return len(found)
