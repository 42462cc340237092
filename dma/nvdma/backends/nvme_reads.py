"""Which reads are under way on one NVMe drive, and which wait for a free command of its queue?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from nvdma.ledger import Pending
from nvdma.nvme import commands
from nvdma.nvme.drive import Drive
from nvdma.nvme.prp import in_one_piece, prepare
from nvdma.nvme.queue import Prepared, prepared
from nvdma.nvme.spec import Entries
from nvdma.pci.dma import PAGE, BusAddresses, Pages
from nvdma.types import Read


class Begin(NamedTuple):
    """Where a source lies on its own drive: it begins at byte `offset` of namespace `nsid`."""

    nsid: int
    offset: int
    block_bytes: int


class DriveReads:
    """One drive with the reads under way on it, by command. `begins` has the sources that lie on it, by their number.

    When all commands of the drive are in use, further reads wait here for the next free one, and hold up no other
    drive. A streamer reads into the same places again and again, so entries and lists of the first commands are kept.
    """

    def __init__(self, drive: Drive, target: BusAddresses, begins: Mapping[int, Begin]) -> None:
        self.drive = drive
        self.flights: dict[int, Pending] = {}
        self.waiting: deque[Pending] = deque()
        self._begins = begins
        self._target = target
        self._list_pages = drive.lists.bus.pages(0, drive.lists.nbytes).tolist()
        self._lists = np.frombuffer(drive.lists.view, np.uint64).reshape(len(self._list_pages), -1)
        self._free = list(range(drive.depth))
        self._spare = list(range(drive.depth, len(self._list_pages)))
        self._kept: dict[tuple[int, int, int], Prepared] = {}
        self._lent: dict[int, int] = {}  # the page of a list that is not kept, by the tag of its read

    def submit(self, pendings: Sequence[Pending]) -> None:
        """Takes those of the reads whose source is on this drive."""
        begins = self._begins
        self.waiting.extend(pending for pending in pendings if pending.read.source in begins)
        self.send()

    def send(self) -> None:
        """Commands for as many reads that wait as the drive has room for; one doorbell."""
        begins, kept = self._begins, self._kept
        # They wait until the drive has them: whatever fails here loses none.
        here = list(islice(self.waiting, self.drive.depth - len(self.flights)))
        entries = []
        for pending in here:
            tag, source, offset, _, target = pending.read
            nsid, first, block_bytes = begins[source]
            # What lies behind a source is another source's, or no block of the drive.
            nbytes = -(-pending.expected // PAGE) * PAGE
            entry = kept.get((nsid, target, nbytes)) or self._entry(tag, (nsid, target, nbytes), block_bytes)
            entries.append((entry, (first + offset) // block_bytes))
        if here:
            self.flights.update(zip(self.drive.queue.submit_prepared(entries), here, strict=True))
            for _ in here:
                self.waiting.popleft()

    def lba(self, read: Read) -> int:
        """The first block of a read."""
        _, first, block_bytes = self._begins[read.source]
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
