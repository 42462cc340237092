"""How is every segment in the device's memory when a pass needs it?

A pass says first which keys it needs, in order. The mover runs on as if the next pass needed the same, into every slot
that is free (`policy`). Which experts it needs is known layer by layer: those come first (`experts`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nvdma.fence import DONE, Fence
from nvstreamd.errors import NvstreamError, StorageError
from nvstreamd.kernels.device import OwnMemory
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.expert_cache import Fetch
from nvstreamd.weights.flow.experts import ExpertFlow
from nvstreamd.weights.flow.mover import WAIT_SECONDS, Bringing, Filling, Mover
from nvstreamd.weights.flow.near_cache import Promotion
from nvstreamd.weights.flow.plan import Plan
from nvstreamd.weights.flow.policy import Cache
from nvstreamd.weights.flow.pools import Pool, Slot
from nvstreamd.weights.packed.manifest import Segment

log = logging.getLogger(__name__)

NOTHING: AbstractSet[Key] = frozenset()


@dataclass(slots=True)
class Held:
    """A segment in the device's memory: it stays until the with block ends and the work that `until` names is done."""

    slot: Slot
    fence: Fence = DONE

    def until(self, fence: Fence) -> None:
        """Keeps the slot from being read over before the fence is done."""
        self.fence = fence


@dataclass(slots=True)
class Counters:
    """The counts since the start: bytes from the drive, brought into the device's own memory, multiplied where they
    rest, by the processor beside a card among them; seconds that passes waited."""

    streamed_bytes: int = 0
    brought_bytes: int = 0
    resident_bytes: int = 0
    host_bytes: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Needs:
    """The bytes of a pass: from the drive, only multiplied where they rest, brought into the device's own memory.

    `host_bytes` are multiplied by the processor beside a device with memory of its own.
    """

    streamed_bytes: int
    resident_bytes: int
    brought_bytes: int = 0
    host_bytes: int = 0


class Flow:
    """Yields the segments of passes. `start` fills those that rest in memory and begins to read ahead.

    With a device's `own` memory, whose share is the plan's first, host memory is the tier behind it. `changed` is what
    passes and the mover wait on for each other.
    """

    def __init__(self, mover: Mover, pool: Pool, segments: Sequence[Segment], plan: Plan,
                 own: OwnMemory | None = None, changed: threading.Condition | None = None) -> None:
        self.mover = mover
        self.pool = pool
        self.own = own
        self.segments: Mapping[Key, Segment] = {segment.key: segment for segment in segments}
        self.plan = plan
        self.counters = Counters()
        # By tier, the device's own first.
        self._resting: list[dict[Key, Slot]] = [{} for _ in plan.tiers]
        self._on_host: AbstractSet[Key] = NOTHING
        self._slots: list[list[Slot]] = [[] for _ in plan.tiers]
        self._cache = Cache([share.rests for share in plan.tiers], [share.slots for share in plan.tiers])
        self._changed = changed or threading.Condition()
        # Slots that the device may still be working on, by number: the mover looks at their fences.
        self._cooling: deque[tuple[int, Fence]] = deque()
        self._error: NvstreamError | None = None
        self._stopping = False
        self._order = [key for key in self.segments if key.kind is not Kind.EXPERT]
        self.experts = None if plan.experts is None else ExpertFlow(
            self.segments, plan.experts, self._changed, lambda: self._error, self._waited, plan.near, own, plan.many,
            mover.now)

    def start(self, stack: ExitStack) -> None:
        """Fills what rests in memory, then starts the mover's thread; `stack` stops it. Raises NvstreamError."""
        if self.own is not None:
            self._fill_own(self.own)
        for tier, share in enumerate(self.plan.tiers):
            for key, segment in self.segments.items():
                if key in share.rests and key not in self._resting[tier]:
                    self._resting[tier][key] = self.pool.take(segment.nbytes)
                    self.mover.fill(segment, self._resting[tier][key])
            self._slots[tier] = [self._take(tier, share.slot_bytes) for _ in range(share.slots)]
        self._cache.expect(self._order)
        if self.experts is not None:
            self.experts.open(self.pool)
        if any(self._slots) or self.experts is not None:
            thread = threading.Thread(target=self.mover.run, args=(self,), name="read-ahead", daemon=True)
            thread.start()
            stack.callback(self._stop, thread)

    def _take(self, tier: int, nbytes: int) -> Slot:
        if tier > 0 or self.own is None:
            return self.pool.take(nbytes)
        return Slot(self.own.take(nbytes), memoryview(b""))

    def _fill_own(self, own: OwnMemory) -> None:
        """Brings what rests in the device's own memory: one segment is read while the one before is on its way."""
        resting = [segment for key, segment in self.segments.items() if key in self.plan.tiers[0].rests]
        largest = max((segment.nbytes for segment in resting), default=0)
        with ExitStack() as stack:
            rooms: deque[tuple[Slot, Fence]] = deque(
                (stack.enter_context(self.pool.borrowed(largest)), DONE) for _ in resting[:2])
            for segment in resting:
                room, before = rooms.popleft()
                self._wait_for(before)
                self.mover.fill(segment, room)
                slot = self._resting[0][segment.key] = self._take(0, own.form(segment.by_name).nbytes)
                rooms.append((room, own.bring(segment.by_name, room.span, slot.span)))
            for _, fence in rooms:
                self._wait_for(fence)

    def expect(self, keys: Sequence[Key], on_host: AbstractSet[Key] = NOTHING) -> Needs:
        """Begins a pass over these keys, in this order; what it moves.

        Those `on_host`, which rest in host memory, are multiplied there beside a device with memory of its own.
        """
        self._on_host = on_host
        moves = [key for key in keys if key not in on_host]
        with self._changed:
            self._cache.expect(moves)
            self._changed.notify_all()
        moved = [self.segments[key] for key in moves if key not in self._resting[0]]
        resting = sum(self.segments[key].nbytes for key in keys if key in self._resting[0])
        read = sum(segment.read_bytes for segment in moved if segment.key not in self._resting[-1])
        return Needs(read, resting, 0 if self.own is None else sum(segment.nbytes for segment in moved),
                     sum(self.segments[key].nbytes for key in keys if key in on_host))

    def rests(self, key: Key) -> Slot:
        """Where a segment rests in the device's memory, which it does."""
        return self._resting[0][key]

    def raw(self, key: Key) -> Slot | None:
        """Where a segment rests in host memory, as its file has it; None where it does not."""
        return None if self.own is not None and len(self._resting) == 1 else self._resting[-1].get(key)

    @contextmanager
    def segment(self, key: Key) -> Iterator[Held]:
        """The segment of a key of the pass, valid inside the with block. Keys come in the order that was expected.

        It is in the device's memory, but for what is multiplied on the host.

        Raises ModelChanged, BadModelFile or StorageError when it could not be read.
        """
        if key in self._resting[0]:
            self.counters.resident_bytes += self.segments[key].nbytes
            yield Held(self._resting[0][key])
            return
        if key in self._on_host:
            self.counters.host_bytes += self.segments[key].nbytes
            yield Held(self._resting[-1][key])
            return
        number = self._next_slot(key)
        held = Held(self._slots[0][number])
        try:
            yield held
        finally:
            with self._changed:
                self._cooling.append((number, held.fence))
                self._changed.notify_all()

    def check_unchanged(self) -> None:
        """Raises ModelChanged when a file is not what it was when it was opened."""
        for file in self.mover.files:
            file.check_unchanged()

    def _next_slot(self, key: Key) -> int:
        begin = self.mover.now()
        number: int | None = None

        def there() -> bool:
            nonlocal number
            number = None if self._error else self._cache.take(key)
            return self._error is not None or number is not None

        with self._changed:
            self._changed.wait_for(there, WAIT_SECONDS)
        self._waited(key.name, begin, self.mover.now())
        if self._error is not None:
            raise self._error
        if number is None:
            raise StorageError(f"{self.mover.files[0].path}: {key.name} did not arrive in {WAIT_SECONDS:.0f} s",
                               "look at the drive's health and at dmesg")
        return number

    def _waited(self, what: str, begin: float, end: float) -> None:
        self.counters.waited_seconds += end - begin
        if self.mover.trace is not None:
            self.mover.trace.event("waits", f"for {what}", begin, end)

    def _stop(self, thread: threading.Thread) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        thread.join()
        # The memory is given back next: no work on it may be left.
        experts = [] if self.experts is None else self.experts.cooling
        for fence in [*(fence for _, fence in self._cooling), *experts]:
            if not fence.wait(WAIT_SECONDS):
                log.critical("memory is given back while %s goes on: it did not end in %.0f s", fence, WAIT_SECONDS)
                return

    def wait(self, *, idle: bool) -> bool:
        """Waits, unless other moves are under way, until a slot may be free. False: the end. For the mover."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not idle or self._cooling or self._wants())
            return not self._stopping

    def _wants(self) -> bool:
        return self._cache.wants or (self.experts is not None and self.experts.wants)

    def choose(self, *, idle: bool) -> Filling | Bringing | None:
        """The next load; while nothing else moves, work on a slot that is wanted is waited for. For the mover."""
        while True:
            with self._changed:
                for _ in range(len(self._cooling)):
                    number, fence = self._cooling.popleft()
                    if fence.done():
                        self._cache.release(number)
                    else:
                        self._cooling.append((number, fence))
                filling = None if self._stopping else self._next(idle=idle)
                first = self._cooling[0][1] if self._cooling else None
                if first is None and self.experts is not None:
                    first = next(iter(self.experts.cooling), None)
            if filling is not None:
                return filling
            if not idle or first is None or self._stopping:
                return None
            self._wait_for(first)

    def _next(self, *, idle: bool) -> Filling | Bringing | None:
        """What a pass waits for comes first, then what it will need, then what may be of use."""
        experts = self.experts
        filling = None if experts is None else experts.needed()
        if filling is None and (move := self._cache.choose()) is not None:
            segment, slot = self.segments[move.key], self._slots[move.tier][move.slot]
            if self.own is None or move.tier > 0:
                return Filling(move, segment, slot)
            source = self._resting[1][move.key] if move.source is None else self._slots[1][move.source]
            return Bringing(move, segment, source, slot, self.own)
        if filling is None and experts is not None:
            filling = experts.ahead() or (experts.of_use() if idle else None)
        return filling

    def _wait_for(self, fence: Fence) -> None:
        if not fence.wait(WAIT_SECONDS):
            raise StorageError(f"{self.mover.files[0].path}: waited {WAIT_SECONDS:.0f} s for {fence}",
                               "look at the card's log: its work does not end")

    def arrived(self, load: Filling | Bringing) -> None:
        """The load's bytes are in its slot. For the mover."""
        with self._changed:
            if isinstance(load, Bringing):
                self.counters.brought_bytes += load.segment.nbytes
            else:
                self.counters.streamed_bytes += load.segment.read_bytes
            if isinstance(load.move, Fetch | Promotion):
                assert self.experts is not None
                self.experts.arrived(load.move)
            else:
                self._cache.arrived(load.move)
            self._changed.notify_all()

    def failed(self, error: NvstreamError) -> None:
        """No pass can go on. For the mover."""
        with self._changed:
            self._error = error
            self._changed.notify_all()
