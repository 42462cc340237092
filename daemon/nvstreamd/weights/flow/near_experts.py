"""Where do experts lie in a device's own memory, and how do they come there from the host's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nvstreamd.kernels.device import OwnMemory
from nvstreamd.pieces import Key
from nvstreamd.weights.flow.expert_cache import ExpertCache
from nvstreamd.weights.flow.expert_plan import ExpertShare
from nvstreamd.weights.flow.mover import Bringing
from nvstreamd.weights.flow.near_cache import NearCache, Promotion
from nvstreamd.weights.flow.pools import Slot
from nvstreamd.weights.packed.manifest import Segment


@dataclass(slots=True)
class NearExperts:
    """The experts of a model in `own` memory, in slots by its `share`; `here` says which are in the host's.

    An expert of `many` rows in a pass, or more, is worth being brought for it. `open` takes the slots. All else is
    called within the flow's lock.
    """

    segments: Mapping[Key, Segment]
    share: ExpertShare
    own: OwnMemory
    here: ExpertCache
    many: int
    cache: NearCache = field(init=False)
    _memory: list[list[Slot]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.cache = NearCache(self.share.classes, self.share.slots)

    def open(self) -> None:
        """Takes the slots. Raises DmaError."""
        self._memory = [[Slot(self.own.take(size), memoryview(b"")) for _ in range(count)]
                        for size, count in zip(self.share.sizes, self.share.slots, strict=True)]

    def slot(self, expert: int) -> Slot:
        """Where an expert lies that is there."""
        return self._memory[self.share.classes[expert]][self.cache.slot(expert)]

    def ask(self, rows: Mapping[int, int]) -> tuple[int, ...]:
        """Asks for those that many rows need; which those are."""
        asked = [each for each, count in rows.items() if count >= self.many]
        found = tuple(sorted(asked, key=lambda each: -rows[each]))
        self.cache.pass_through(found)
        return found

    def look(self) -> None:
        """Finds out, for when the link has nothing to do, who should be there."""
        self.cache.look(self.here.heat(), self.here.ready)

    @property
    def wants(self) -> bool:
        """True when there is something to bring."""
        return self.cache.wants(self.here.there)

    def needed(self, sources: Sequence[Sequence[Slot]], classes: Sequence[int]) -> Bringing | None:
        """What a pass waits for; `sources` are the slots of host memory by class, `classes` those of the experts."""
        return self._bringing(self.cache.choose(self.here.there), sources, classes)

    def of_use(self, sources: Sequence[Sequence[Slot]], classes: Sequence[int]) -> Bringing | None:
        """What will probably be of use."""
        return self._bringing(self.cache.choose_idle(self.here.there), sources, classes)

    def _bringing(self, promotion: Promotion | None, sources: Sequence[Sequence[Slot]], classes: Sequence[int]
                  ) -> Bringing | None:
        if promotion is None:
            return None
        expert = promotion.expert
        self.here.hold(expert)
        if promotion.gone >= 0:
            self.here.lies_elsewhere(promotion.gone, elsewhere=False)
        return Bringing(promotion, self.segments[self.share.keys[expert]],
                        sources[classes[expert]][self.here.slot(expert)],
                        self._memory[self.share.classes[expert]][promotion.slot], self.own)

    def arrived(self, promotion: Promotion) -> None:
        """It is there."""
        self.here.done(promotion.expert)
        if promotion.stays:
            self.here.lies_elsewhere(promotion.expert, elsewhere=True)
        self.cache.arrived(promotion)
