"""How do commands get to a controller, and completions back? Two rings in memory and two doorbells.

(NVM Express Base Specification 2.0, section 3.3.1.) We write entries at the submission ring's tail and ring once a
batch. The controller writes completions with a phase bit that changes each time round: that bit alone says which are
new, so waiting reads only memory.

Memory ordering. An entry must be in memory before its doorbell is rung, and a completion's phase must be read before
the rest of it. x86 keeps both orders. Elsewhere each would need a barrier that reaches devices, which Python does not
have (the lock of `nvdma.backends.ring` only orders CPUs): this driver is for x86.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nvdma.errors import ControllerRefused, QueueClosed, QueueFull, UnknownCompletion
from nvdma.nvme import spec
from nvdma.nvme.spec import Entries
from nvdma.pci.dma import PAGE, DmaMemory
from nvdma.pci.mmio import Registers, wait_until

MIN_ENTRIES, MAX_ENTRIES = 2, 4096
CQE_WORDS = spec.CQE_BYTES // 4
# Plain numbers where each completion comes by: three calls of Field.get cost more than all else there.
CID_MASK = (1 << spec.CQE_CID.bits) - 1
PHASE_SHIFT, STATUS_SHIFT = spec.CQE_PHASE.shift, spec.CQE_STATUS.shift
# A read's entry around what changes each time: the identifier, in double word 0, and the first block, in double words
# 10 and 11 (NVM Command Set Specification 1.0, section 3.2.4).
READ = struct.Struct("<2sH36sQ16s")
Prepared = tuple[bytes, bytes, bytes]


class Completion(NamedTuple):
    """Command `cid` is over. `status` is 0 for success (15 bits, see nvdma.nvme.status), `dw0` the command's answer."""

    cid: int
    status: int
    dw0: int


def prepared(entry: Entries) -> Prepared:
    """The bytes that `submit_prepared` puts around identifier and first block of a read, shape (1,)."""
    head, _, middle, _, rest = READ.unpack(entry.tobytes())
    return head, middle, rest


def completion_entries(entries: int) -> int:
    """How many completions the memory of a pair of `entries` has room for: its pages are whole."""
    return _pages(entries * spec.CQE_BYTES) // spec.CQE_BYTES


def queue_bytes(entries: int) -> int:
    """The bytes of memory that the rings of a pair of `entries` each take."""
    return _pages(entries * spec.SQE_BYTES) + _pages(entries * spec.CQE_BYTES)


class QueuePair:
    """Submission queue `qid` of `entries`, the completion queue of the same number, in `memory` from `offset` on.

    The completion queue has `completions` entries, or `entries` where that is None. The more it has, the less often we
    ring its doorbell, which tells the device how many completions we have read. Each ring is a trip to the device, and
    an emulated device may answer it only after the commands before it.

    One thread uses it. Of a ring of N entries N - 1 are used: a full one would look empty (section 3.3.1.2). Every
    entry that the controller has not fetched is a command outstanding. So N - 1 outstanding commands never overrun the
    submission ring. They do not overrun the completion ring either, while it has N - 1 entries beside those that we
    have read and not told the device of.
    """

    def __init__(self, qid: int, entries: int, registers: Registers, memory: DmaMemory, *, stride: int,
                 offset: int = 0, name: str = "nvme", completions: int | None = None) -> None:
        if not MIN_ENTRIES <= entries <= MAX_ENTRIES:
            raise ValueError(f"a queue of {entries} entries has not {MIN_ENTRIES} to {MAX_ENTRIES}")
        self.qid = qid
        self.entries = entries
        self.completions = completions or entries
        if not entries <= self.completions <= completion_entries(entries):
            raise ValueError(f"{self.completions} completions are not {entries} to {completion_entries(entries)}")
        self.name = f"{name} queue {qid}"
        second = offset + _pages(entries * spec.SQE_BYTES)
        self.submission_ring = _contiguous(memory, offset, entries * spec.SQE_BYTES)
        self.completion_ring = _contiguous(memory, second, self.completions * spec.CQE_BYTES)
        self._memory = memory
        self._offsets = (offset, second)
        self._registers = registers
        self._tail_doorbell = spec.doorbell(qid, stride, completion=False)
        self._head_doorbell = spec.doorbell(qid, stride, completion=True)
        self._outstanding: set[int] = set()
        self._next_cid = 0
        self._sq: Entries | None = None
        self._submissions: memoryview | None = None
        self._cq: memoryview | None = None
        self._tail = self._head = self._unsaid = 0
        self._phase = 1

    @property
    def outstanding(self) -> int:
        """Commands submitted whose completion was not reaped."""
        return len(self._outstanding)

    @property
    def room(self) -> int:
        """Commands that `submit` would take now."""
        return self.entries - 1 - len(self._outstanding)

    def is_outstanding(self, cid: int) -> bool:
        """True while this command is submitted and its completion not reaped."""
        return cid in self._outstanding

    def open(self) -> None:
        """Empties the rings; to be called before the controller hears of them, and undone by `close`."""
        first, second = self._offsets
        ring = self._memory.view[first : first + self.entries * spec.SQE_BYTES]
        self._sq, self._submissions = np.frombuffer(ring, spec.SQE), ring
        self._cq = self._memory.view[second : second + self.completions * spec.CQE_BYTES].cast("I")
        # What is left of an earlier queue must not look like completions of this one.
        self._cq.cast("B")[:] = bytes(self._cq.nbytes)
        self._outstanding.clear()
        self._tail = self._head = self._unsaid = 0
        self._phase = 1

    def close(self) -> None:
        """Lets go of the memory, once the controller does not use it any more. Commands outstanding are forgotten."""
        self._sq = None
        if self._submissions is not None:
            self._submissions.release()
        self._submissions = None
        if self._cq is not None:
            self._cq.release()
        self._cq = None
        self._outstanding.clear()

    def submit(self, entries: Entries) -> list[int]:
        """Hands over commands, shape (n,) of `spec.SQE`, with one doorbell; returns the identifiers they got, in order.

        `entries` are copied and stay as they are. Raises QueueFull (nothing was taken then) and QueueClosed.
        """
        if self._sq is None:
            raise QueueClosed(f"{self.name} is closed")
        if len(entries) > self.room:
            raise QueueFull(self.entries - 1, len(self._outstanding), len(entries))
        if not len(entries):
            return []
        cids = self._take_cids(len(entries))
        self._copy(self._sq, entries, np.array(cids, np.uint16))
        self._tail = (self._tail + len(entries)) % self.entries
        self._registers.write32(self._tail_doorbell, self._tail)
        return cids

    def submit_prepared(self, commands: Sequence[tuple[Prepared, int]]) -> list[int]:
        """Hands over reads as `submit` does, whose entries were `prepared` before: each with its first block.

        A few times faster than `submit` for a few commands: no array is made. Raises what `submit` raises.
        """
        ring = self._submissions
        if ring is None:
            raise QueueClosed(f"{self.name} is closed")
        if len(commands) > self.room:
            raise QueueFull(self.entries - 1, len(self._outstanding), len(commands))
        if not commands:
            return []
        cids = self._take_cids(len(commands))
        tail, entries, write = self._tail, self.entries, READ.pack_into
        for cid, ((head, middle, rest), lba) in zip(cids, commands, strict=True):
            write(ring, tail * spec.SQE_BYTES, head, cid, middle, lba, rest)
            tail += 1
            if tail == entries:
                tail = 0
        self._tail = tail
        self._registers.write32(self._tail_doorbell, tail)
        return cids

    def reap(self) -> list[Completion]:
        """Completions that arrived since the last call, perhaps none.

        A doorbell says that they were read, before the controller might lack room for those of all it may have.

        Raises UnknownCompletion, after which the queue is of no use, and QueueClosed.
        """
        return [Completion(*found) for found in self.reap_plain()]

    def reap_plain(self, most: int = MAX_ENTRIES) -> list[tuple[int, int, int]]:
        """The completions of `reap`, `most` of them, as plain tuples: Completions take ten times as long to make."""
        words = self._cq
        if words is None:
            raise QueueClosed(f"{self.name} is closed")
        found: list[tuple[int, int, int]] = []
        head, phase, outstanding = self._head, self._phase, self._outstanding
        # Bounded: a controller that never stops completing must not keep us here.
        for _ in range(min(most, self.entries - 1)):
            at = head * CQE_WORDS
            # One aligned load has identifier, phase and status; double word 0 is read after it.
            last = words[at + 3]
            if last >> PHASE_SHIFT & 1 != phase:
                break
            cid = last & CID_MASK
            if cid not in outstanding:
                raise UnknownCompletion(self.name, cid)
            outstanding.remove(cid)
            found.append((cid, last >> STATUS_SHIFT, words[at]))
            head += 1
            if head == self.completions:
                head, phase = 0, phase ^ 1
        self._head, self._phase = head, phase
        self._unsaid += len(found)
        if self._unsaid > self.completions - self.entries:
            self._unsaid = 0
            self._registers.write32(self._head_doorbell, head)
        return found

    def wait(self, seconds: float, check: Callable[[], None]) -> list[Completion]:
        """At least one completion. Raises DeadlineExceeded, what `reap` raises, and what `check` does.

        `check`, asked while nothing has come, raises when nothing will: see `Controller.check`.
        """
        found: list[Completion] = []

        def arrived() -> bool:
            found.extend(self.reap())
            if not found:
                check()
            return bool(found)

        wait_until(arrived, seconds, f"{self.name}: one of {len(self._outstanding)} commands to complete")
        return found

    def _take_cids(self, count: int) -> list[int]:
        # All identifiers go round before one comes back: a late or repeated completion meets no new command.
        first = self._next_cid
        cids = list(range(first, first + count))
        if cids[-1] < spec.CIDS and self._outstanding.isdisjoint(cids):
            self._next_cid = (first + count) % spec.CIDS
            self._outstanding.update(cids)
            return cids
        cids = []
        while len(cids) < count:
            if self._next_cid not in self._outstanding:
                cids.append(self._next_cid)
            self._next_cid = (self._next_cid + 1) % spec.CIDS
        self._outstanding.update(cids)
        return cids

    def _copy(self, ring: Entries, entries: Entries, cids: npt.NDArray[np.uint16]) -> None:
        first = min(len(entries), self.entries - self._tail)
        _place(ring[self._tail : self._tail + first], entries[:first], cids[:first])
        if first < len(entries):
            _place(ring[: len(entries) - first], entries[first:], cids[first:])


def _place(stretch: Entries, entries: Entries, cids: npt.NDArray[np.uint16]) -> None:
    stretch[:] = entries
    stretch["cid"] = cids


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def _contiguous(memory: DmaMemory, offset: int, nbytes: int) -> int:
    """The bus address of a ring. Raises ControllerRefused unless the device sees it in one piece, on a page."""
    if offset + nbytes > memory.nbytes:
        raise ValueError(f"a ring of {nbytes} bytes at {offset} is outside its memory of {memory.nbytes}")
    pages = memory.bus.pages(offset, nbytes)
    if int(pages[0]) % PAGE or np.any(np.diff(pages) != PAGE):
        raise ControllerRefused(f"a ring of {nbytes} bytes is not in one piece to the device",
                                hint="use an IOMMU, or smaller queues: 64 entries fit into a page")
    return int(pages[0])
