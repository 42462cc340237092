"""How do the experts of a layer come to the device: those in memory at once, the others as they arrive?

The slots belong to an ExpertCache, which decides; the flow's mover brings what it chooses, and its lock is ours.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from nvdma.fence import DONE, Fence
from nvstreamd.errors import NvstreamError, StorageError
from nvstreamd.kernels.device import OwnMemory
from nvstreamd.pieces import Key
from nvstreamd.weights.flow.expert_cache import ExpertCache, Fetch, Need
from nvstreamd.weights.flow.expert_plan import ExpertShare
from nvstreamd.weights.flow.mover import WAIT_SECONDS, Bringing, Filling
from nvstreamd.weights.flow.near_cache import Promotion
from nvstreamd.weights.flow.near_experts import NearExperts
from nvstreamd.weights.flow.pools import Pool, Slot
from nvstreamd.weights.packed.manifest import Segment

NOBODY: AbstractSet[int] = frozenset()


@dataclass(slots=True)
class ExpertCounters:
    """The counts since the start: experts that were in memory when a pass needed them, and that were not, by layer.

    Of the former `near` lay in the device's own memory.
    """

    hits: list[int]
    misses: list[int]
    missed_bytes: int = 0
    near: int = 0


@dataclass(slots=True)
class Arrived:
    """Experts of a layer that are in memory, by their number there, and where they lie.

    They stay until the next ones are asked for and the work that `until` names is done. Those that were `missed` came
    off the drive for this need; those that are `near` lie in the device's own memory.
    """

    slots: Sequence[tuple[int, Slot]]
    missed: AbstractSet[int]
    near: AbstractSet[int] = NOBODY
    fence: Fence = DONE

    def until(self, fence: Fence) -> None:
        """Keeps their slots from being read over before the fence is done."""
        self.fence = fence


@dataclass(frozen=True, slots=True)
class _Ready:
    """Experts that can be run: those in host memory, and those in the device's own."""

    here: tuple[int, ...] = ()
    near: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Cooling:
    """Experts whose last work may still be under way: those that needs hold in host memory, and in the device's own."""

    here: tuple[int, ...]
    near: tuple[int, ...]
    fence: Fence


@dataclass(slots=True)
class _Left:
    """Experts that a need still waits for, by where they are to be run."""

    here: set[int]
    near: set[int]

    def __bool__(self) -> bool:
        return bool(self.here or self.near)

    def of(self, here: ExpertCache, near: NearExperts | None) -> _Ready:
        """Those that have come."""
        return _Ready(tuple(each for each in self.here if here.there(each)),
                      () if near is None else tuple(each for each in self.near if near.cache.there(each)))


@dataclass(slots=True)
class ExpertFlow:
    """The experts of a model. `open` takes their slots; `changed` is the flow's lock, `failure` its error.

    `waited` is told what was waited for, and from when to when by the clock `now`. With `own` memory of a device, of
    which experts have the share `near`, those are run there that lie there, and those that `many` rows or more need.
    """

    segments: Mapping[Key, Segment]
    share: ExpertShare
    changed: threading.Condition
    failure: Callable[[], NvstreamError | None]
    waited: Callable[[str, float, float], None]
    near_share: ExpertShare | None = None
    own: OwnMemory | None = None
    many: int = 1
    now: Callable[[], float] = time.monotonic
    counters: ExpertCounters = field(init=False)
    slots: int = field(init=False)
    near: NearExperts | None = field(init=False, default=None)
    _cache: ExpertCache = field(init=False)
    _memory: list[list[Slot]] = field(init=False, default_factory=list)
    _cooling: deque[_Cooling] = field(init=False, default_factory=deque)

    def __post_init__(self) -> None:
        share = self.share
        self.counters = ExpertCounters([0] * len(share.layers), [0] * len(share.layers))
        self.slots = sum(share.slots)
        self._cache = ExpertCache(share.per_layer, share.used, share.classes, share.slots)
        if self.near_share is not None and self.own is not None:
            self.near = NearExperts(self.segments, self.near_share, self.own, self._cache, self.many)

    def open(self, pool: Pool) -> None:
        """Takes the slots. Raises BudgetTooSmall, DmaError."""
        self._memory = [[pool.take(size) for _ in range(count)]
                        for size, count in zip(self.share.sizes, self.share.slots, strict=True)]
        if self.near is not None:
            self.near.open()

    def begin(self, rows: int, then: int) -> None:
        """Begins a pass of so many rows, behind which one of `then` is expected."""
        with self.changed:
            self._cache.begin(rows, then)
            if self.near is not None:
                self.near.look()

    def serve(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrived]:
        """The experts of a layer that are needed, by how many rows: first those in memory, then as they arrive.

        Raises ModelChanged, BadModelFile or StorageError when one could not be read.
        """
        ordinal = self.share.layers.index(layer)
        first = ordinal * self.share.per_layer
        near, passing, need = self._need(ordinal, {first + expert: count for expert, count in rows.items()})
        brought = set(need.missing) | set(need.ahead)
        left = _Left((set(need.there) | set(need.missing)).difference(passing), set(passing))
        ready = _Ready(tuple(each for each in need.there if each in left.here), near)
        try:
            while left or ready.near:
                ready = ready if ready.here or ready.near else self._wait(left)
                slots = [(each - first, self._slot(each)) for each in ready.here]
                if self.near is not None:
                    slots += [(each - first, self.near.slot(each)) for each in ready.near]
                arrived = Arrived(slots, {each - first for each in brought.intersection(ready.here + ready.near)},
                                  {each - first for each in ready.near})
                # Who passes through is held in host memory, too.
                here = ready.here + tuple(left.near.intersection(ready.near))
                left.here.difference_update(ready.here)
                left.near.difference_update(ready.near)
                try:
                    yield arrived
                finally:
                    self._done(_Cooling(here, ready.near, arrived.fence))
                ready = _Ready()
        finally:
            if left:
                with self.changed:
                    self._cache.forget(tuple(left.here | left.near))
                    if self.near is not None:
                        self.near.cache.forget(tuple(left.near))

    def _need(self, ordinal: int, rows: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...], Need]:
        """Those that lie near already, those that are brought there for this need, and what the others meet."""
        with self.changed:
            near: tuple[int, ...] = ()
            passing: tuple[int, ...] = ()
            if self.near is not None:
                near = self.near.cache.take(rows)
                self._cache.use({each: rows[each] for each in near})
                rows = {each: count for each, count in rows.items() if each not in near}
                passing = self.near.ask(rows)
            need = self._cache.need(ordinal, rows)
            if self.wants:
                self.changed.notify_all()
        self._count(ordinal, need, len(near))
        return near, passing, need

    def _count(self, ordinal: int, need: Need, near: int) -> None:
        self.counters.hits[ordinal] += len(need.there) - len(need.ahead) + near
        self.counters.near += near
        self.counters.misses[ordinal] += len(need.missing) + len(need.ahead)
        self.counters.missed_bytes += sum(self._segment(each).read_bytes for each in need.missing + need.ahead)

    def _segment(self, expert: int) -> Segment:
        return self.segments[self.share.keys[expert]]

    def _slot(self, expert: int) -> Slot:
        return self._memory[self.share.classes[expert]][self._cache.slot(expert)]

    def _wait(self, left: _Left) -> _Ready:
        """Those of the experts that have come, once there are any."""
        found, count = _Ready(), len(left.here) + len(left.near)

        def there() -> bool:
            nonlocal found
            found = left.of(self._cache, self.near)
            return bool(found.here or found.near) or self.failure() is not None

        began = self.now()
        with self.changed:
            self.changed.wait_for(there, WAIT_SECONDS)
        self.waited(f"{count} experts", began, self.now())
        error = self.failure()
        if error is not None:
            raise error
        if not found.here and not found.near:
            raise StorageError(f"{count} experts did not arrive in {WAIT_SECONDS:.0f} s",
                               "look at the drive's health and at dmesg")
        return found

    def _done(self, cooling: _Cooling) -> None:
        with self.changed:
            self._cooling.append(cooling)
            self._cool()
            # The mover is not woken for nothing: it would take the interpreter from whoever multiplies.
            if self.wants:
                self.changed.notify_all()

    def _cool(self) -> None:
        """Lets go of those whose work is done."""
        for _ in range(len(self._cooling)):
            each = self._cooling.popleft()
            if each.fence.done():
                for expert in each.here:
                    self._cache.done(expert)
                for expert in each.near:
                    assert self.near is not None
                    self.near.cache.done(expert)
            else:
                self._cooling.append(each)

    @property
    def wants(self) -> bool:
        """True when there is something to bring. For the mover, within the lock, like what follows."""
        return (bool(self._cooling) or self._cache.wants or self._cache.wishes
                or (self.near is not None and self.near.wants))

    @property
    def cooling(self) -> list[Fence]:
        """The work that slots wait for."""
        return [each.fence for each in self._cooling]

    def needed(self) -> Filling | Bringing | None:
        """What a pass waits for."""
        self._cool()
        near = None if self.near is None else self.near.needed(self._memory, self.share.classes)
        return near or self._filling(self._cache.choose())

    def ahead(self) -> Filling | None:
        """What the next layer surely needs."""
        return self._filling(self._cache.choose_ahead())

    def of_use(self) -> Filling | Bringing | None:
        """What may be of use some time: hot experts nearer to the device, any into a slot that is free."""
        near = None if self.near is None else self.near.of_use(self._memory, self.share.classes)
        return near or self._filling(self._cache.choose_idle())

    def _filling(self, fetch: Fetch | None) -> Filling | None:
        return None if fetch is None else Filling(fetch, self._segment(fetch.expert), self._slot(fetch.expert))

    def arrived(self, move: Fetch | Promotion) -> None:
        """It is there."""
        if isinstance(move, Fetch):
            self._cache.arrived(move)
        elif self.near is not None:
            self.near.arrived(move)
