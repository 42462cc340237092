"""What moves next into which slot, and when is a slot free again? Pure: what happened goes in, moves come out.

Tiers of memory lie in front of the drive, the device's own first. A key rests in one of them, or passes through a slot
of each. The future is known: a pass says which keys it needs, in order, and the next is taken to need the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from nvstreamd.pieces import Key


@dataclass(frozen=True, slots=True)
class Move:
    """`key` comes into slot `slot` of tier `tier`: out of slot `source` of the tier behind, or from where it rests.

    Behind the last tier is the drive.
    """

    key: Key
    tier: int
    slot: int
    source: int | None = None


@dataclass(slots=True)
class _Coming:
    """A key on its way into a slot, or there."""

    key: Key
    slot: int
    arrived: bool = False


class Ring:
    """The slots of one tier, which keys pass through in order, over and over."""

    def __init__(self, slots: int) -> None:
        self._free = deque(range(slots))
        self._coming: deque[_Coming] = deque()
        # Slots with moves under way that nobody wants any more.
        self._unwanted: set[int] = set()
        self._order: Sequence[Key] = ()
        # What comes into the next free slot.
        self._position = 0

    def expect(self, order: Sequence[Key]) -> int:
        """From now on these are taken, in this order; how many of them are there, or on their way, already."""
        kept: deque[_Coming] = deque()
        for each in self._coming:
            if order and each.key == order[len(kept) % len(order)]:
                kept.append(each)
            elif each.arrived:
                self._free.append(each.slot)
            else:
                self._unwanted.add(each.slot)
        self._coming, self._order, self._position = kept, order, len(kept)
        return len(kept)

    @property
    def next(self) -> Key | None:
        """The key that comes into the next slot; None while none is free, or nothing is to come."""
        return self._order[self._position % len(self._order)] if self._free and self._order else None

    def begin(self, key: Key) -> int:
        """The slot that the next key comes into from now on."""
        slot = self._free.popleft()
        self._coming.append(_Coming(key, slot))
        self._position += 1
        return slot

    def arrived(self, slot: int) -> None:
        """What was on its way into the slot is there."""
        if slot in self._unwanted:
            self._unwanted.remove(slot)
            self._free.append(slot)
        else:
            next(each for each in self._coming if each.slot == slot).arrived = True

    def take(self, key: Key) -> int | None:
        """The slot of the key, which is the next in order, until `release`; None while it has not arrived."""
        if not self._coming or not self._coming[0].arrived:
            return None
        assert self._coming[0].key == key, "keys are taken in the order that was expected"
        return self._coming.popleft().slot

    def release(self, slot: int) -> None:
        """The slot's bytes are not needed any more."""
        self._free.append(slot)


class Cache:
    """The tiers, each with the keys that rest in it and the number of its slots."""

    def __init__(self, rests: Sequence[AbstractSet[Key]], slots: Sequence[int]) -> None:
        self._rests = rests
        self._rings = [Ring(count) for count in slots]

    def expect(self, keys: Sequence[Key]) -> None:
        """Begins a pass over these keys, in this order. What is under way and not needed gives its slots back."""
        order = list(keys)
        for rests, ring in zip(self._rests, self._rings, strict=True):
            order = [key for key in order if key not in rests]
            # The tier behind brings first what this one lacks.
            there = ring.expect(order) % max(1, len(order))
            order = order[there:] + order[:there]

    @property
    def wants(self) -> bool:
        """True while a slot is free for a key that is to come."""
        return any(ring.next is not None for ring in self._rings)

    def choose(self) -> Move | None:
        """The next move, which is under way from now on; None while there is no slot, or nothing to put into it."""
        for tier, ring in enumerate(self._rings):
            key = ring.next
            if key is None:
                continue
            if tier + 1 == len(self._rings) or key in self._rests[tier + 1]:
                return Move(key, tier, ring.begin(key))
            source = self._rings[tier + 1].take(key)
            if source is not None:
                return Move(key, tier, ring.begin(key), source)
        return None

    def arrived(self, move: Move) -> None:
        """The move has ended."""
        self._rings[move.tier].arrived(move.slot)
        if move.source is not None:
            self._rings[move.tier + 1].release(move.source)

    def take(self, key: Key) -> int | None:
        """The device's slot of a key that does not rest there, until `release`; None while it has not arrived."""
        return self._rings[0].take(key)

    def release(self, slot: int) -> None:
        """The device is done with the slot."""
        self._rings[0].release(slot)
