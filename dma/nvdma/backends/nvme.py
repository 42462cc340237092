"""How are bytes read from a drive that is ours, without the kernel, its page cache or a copy?

The drive writes where its commands point: into the arena (`nvme_host`), or into a window of a GPU's memory
(`nvme_vram`); only the addresses differ. Reads become commands of a queue that we poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nvdma.arena import Arena
from nvdma.errors import BackendUnavailable, CommandRefused, DeadlineExceeded, DmaError, InvalidRead
from nvdma.ledger import Ledger, Pending
from nvdma.nvme import commands
from nvdma.nvme.drive import Drive
from nvdma.nvme.prp import in_one_piece, prepare
from nvdma.nvme.queue import Prepared, prepared
from nvdma.nvme.spec import Entries
from nvdma.nvme.status import failure
from nvdma.pci.dma import PAGE, BusAddresses, Pages
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

Target = Callable[[Drive, ExitStack], BusAddresses]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source lies: from byte `offset` (a multiple of 4096) of namespace `nsid` on, of drive number `drive`."""

    drive: int
    nsid: int
    offset: int


class _Stretch(NamedTuple):
    """Where a source lies on its drive: from byte `offset` of namespace `nsid`, of so many bytes a block, on."""

    nsid: int
    offset: int
    block_bytes: int


class _Lane:
    """One drive with the reads under way on it, by command. `places` of sources are on it, by the source's number.

    A streamer reads into the same places again and again: entries and lists of the first such commands are kept.
    """

    def __init__(self, drive: Drive, target: BusAddresses, places: Mapping[int, Place]) -> None:
        self.drive = drive
        self.flights: dict[int, Pending] = {}
        namespace = drive.controller.namespace
        self._stretches = {source: _Stretch(place.nsid, place.offset, namespace(place.nsid).block_bytes)
                           for source, place in places.items()}
        self._target = target
        self._list_pages = drive.lists.bus.pages(0, drive.lists.nbytes).tolist()
        self._lists = np.frombuffer(drive.lists.view, np.uint64).reshape(len(self._list_pages), -1)
        self._free = list(range(drive.depth))
        self._spare = list(range(drive.depth, len(self._list_pages)))
        self._kept: dict[tuple[int, int, int], Prepared] = {}
        self._lent: dict[int, int] = {}  # the page of a list that is not kept, by the tag of its read

    def submit(self, pendings: Sequence[Pending]) -> None:
        """Commands for those of the reads whose source is on this drive; one doorbell."""
        stretches, kept = self._stretches, self._kept
        here, entries = [], []
        for pending in pendings:
            tag, source, offset, _, target = pending.read
            if source not in stretches:
                continue
            nsid, first, block_bytes = stretches[source]
            # What lies behind a source is another source's, or no block of the drive.
            nbytes = -(-pending.expected // PAGE) * PAGE
            entry = kept.get((nsid, target, nbytes)) or self._entry(tag, (nsid, target, nbytes), block_bytes)
            here.append(pending)
            entries.append((entry, (first + offset) // block_bytes))
        self.flights.update(zip(self.drive.queue.submit_prepared(entries), here, strict=True))

    def lba(self, read: Read) -> int:
        """The first block of a read."""
        _, first, block_bytes = self._stretches[read.source]
        return (first + read.offset) // block_bytes

    def _entry(self, tag: int, key: tuple[int, int, int], block_bytes: int) -> Prepared:
        """The command for namespace, target and number of bytes, kept while there are pages for its list."""
        nsid, target, nbytes = key
        page = self._spare.pop() if self._spare else self._free.pop()
        entry = prepared(self._command(nsid, self._target.pages(target, nbytes), nbytes // block_bytes, page))
        if page >= self.drive.depth:
            self._kept[key] = entry
        else:
            self._lent[tag] = page
        return entry

    def _command(self, nsid: int, pages: Pages, blocks: int, page: int) -> Entries:
        # One descriptor in place of a list: the drive looks up one address, not one a page.
        if self.drive.controller.facts.sgls and in_one_piece(pages):
            return commands.read_stretch(nsid, 0, blocks, int(pages[0]), len(pages) * PAGE)
        prp1, prp2, listed = prepare(pages, self._list_pages[page])
        self._lists[page, : len(listed)] = listed
        return commands.read(nsid, 0, blocks, prp1, prp2)

    def landed(self, cid: int) -> Pending:
        """The read whose command has completed."""
        pending = self.flights.pop(cid)
        if self._lent:
            page = self._lent.pop(pending.read.tag, None)
            if page is not None:
                self._free.append(page)
        return pending

    def close(self) -> None:
        """Lets go of the lists' memory."""
        del self._lists


class NvmeBackend:
    """Reads of `sources`, which lie at `places` on `drives`, as `name`; see `nvdma.backend.Backend`.

    A source without a place is on none of them, and nobody may read it. `target` gives a drive its addresses of the
    arena, or of the memory that stands for it. Each drive has `depth` commands; a read is on one drive alone.
    """

    def __init__(self, name: str, drives: Sequence[Drive], places: Sequence[Place | None], sources: Sequence[Source],
                 arena: Arena, *, target: Target | None = None) -> None:
        depth = sum(drive.depth for drive in drives)
        self.facts = BackendFacts(name, depth, MAX_READ, PAGE, True, True)
        self._drives = tuple(drives)
        self._places = tuple(places)
        self._sources = tuple(sources)
        self._arena = arena
        self._target = target or self._into_arena
        self._placed = frozenset(source for source, place in enumerate(places) if place is not None)
        self._ledger = Ledger(self.facts, self._sources, arena.nbytes)
        self._lanes: list[_Lane] = []
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
                self._lanes = [self._open_lane(number, stack) for number in range(len(self._drives))]
                self._check_places()
                self._stack = stack.pop_all()
        except BackendUnavailable:
            raise
        except DmaError as error:
            raise BackendUnavailable(str(error), hint=error.hint) from error
        limits = [drive.controller.facts.max_transfer or MAX_READ for drive in self._drives]
        # A place's drive is the fewest commands that any read may wait for.
        self.facts = replace(self.facts, max_read=min(MAX_READ, *limits),
                             depth=min(drive.depth for drive in self._drives))
        self._ledger = Ledger(self.facts, self._sources, self._arena.nbytes)
        self._most = max(1, int(PART_HANDED_OUT * self.facts.depth))
        self._is_open = True

    def submit(self, reads: Sequence[Read]) -> None:
        """Start `reads`; see `Backend.submit`."""
        if not self._ledger.outstanding:
            self._last = time.monotonic()
        nowhere = {read.source for read in reads} - self._placed
        if nowhere:
            raise InvalidRead(f"source {min(nowhere)} is on none of the drives")
        admitted = self._ledger.admit(reads)
        for lane in self._lanes:
            lane.submit(admitted)

    def poll(self) -> list[Completion]:
        """What has completed; see `Backend.poll`."""
        self._reap(self.facts.depth)
        return self._ledger.take()

    def wait(self, timeout: float) -> list[Completion]:
        """At least one completion within `timeout` seconds; see `Backend.wait`.

        Raises DeviceGone and ControllerFatal as well, for all reads in flight: only closing is of use then.
        """
        self._ledger.check_waitable()
        if not self._reap(self._most):
            self._wait_until(time.monotonic() + timeout, timeout)
        return self._ledger.take()

    def close(self) -> None:
        """Stops the drives, then gives the memory back; see `Backend.close`."""
        if not self._is_open:
            return
        self._is_open = False
        self._ledger.clear()
        self._stack.close()
        self._lanes = []

    def _wait_until(self, deadline: float, timeout: float) -> None:
        while not self._reap(self._most):
            now = time.monotonic()
            if now - self._last > SILENCE_SECONDS:
                for lane in self._lanes:
                    lane.drive.controller.check()
            if now > deadline:
                raise DeadlineExceeded(self._ledger.describe_outstanding(), timeout)
            self._pause()

    def _pause(self) -> None:
        pause = PART_SLEPT_OVER * self._ledger.outstanding * self._pace
        time.sleep(min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))

    def _open_lane(self, number: int, stack: ExitStack) -> _Lane:
        drive = self._drives[number]
        target = self._target(drive, stack)
        drive.open(stack, self._arena.nbytes // BYTES_A_LIST)
        here = {source: place for source, place in enumerate(self._places) if place and place.drive == number}
        lane = _Lane(drive, target, here)
        stack.callback(lane.close)
        return lane

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
        for lane in self._lanes:
            count += self._note(lane, most)
        if count:
            now = time.monotonic()
            self._pace += PACE_WEIGHT * ((now - self._last) / count - self._pace)
            self._last = now
        return self._ledger.has_outcomes

    def _note(self, lane: _Lane, most: int) -> int:
        found = lane.drive.queue.reap_plain(most)
        arrived: list[Pending] = []
        for cid, status, _ in found:
            pending = lane.landed(cid)
            if not status:
                arrived.append(pending)
                continue
            # Outcomes are handed out in the order in which they came.
            self._ledger.arrived(arrived)
            arrived = []
            read = pending.read
            cause = failure(status, f"{lane.drive.name}: Read", lba=lane.lba(read))
            path = self._sources[read.source].path
            self._ledger.refuse(read.tag, CommandRefused(path, read.offset, cause, tag=read.tag))
        self._ledger.arrived(arrived)
        return len(found)
