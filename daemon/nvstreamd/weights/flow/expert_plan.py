"""How much memory do a model's experts get, in slots of which sizes? Pure arithmetic: sizes and a budget in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvstreamd.pieces import Key, Kind

# One expert is multiplied while another comes.
FEWEST = 2
# Experts whose sizes differ by less than this part share a class of slots.
ALIKE = 1 / 8


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """The slots of a model's experts: `slots[c]` of class c, each of `sizes[c]` bytes.

    `keys` are all experts, `per_layer` of each of the `layers`; the expert `keys[n]` is of class `classes[n]`. A pass
    of one row needs `used` of each layer.
    """

    layers: tuple[int, ...]
    per_layer: int
    used: int
    keys: tuple[Key, ...]
    classes: tuple[int, ...]
    sizes: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def memory(self) -> int:
        """Bytes of all slots."""
        return sum(size * count for size, count in zip(self.sizes, self.slots, strict=True))

    @property
    def part(self) -> float:
        """The part of all experts that is in memory once slots are full."""
        return min(1.0, sum(self.slots) / len(self.keys))

    def touched(self, rows: int) -> float:
        """The part of a layer's experts that so many rows need, if all are used alike."""
        return 1.0 - (1.0 - self.used / self.per_layer) ** rows


def experts_of(sizes: Mapping[Key, int]) -> dict[Key, int]:
    """The experts among a model's sizes."""
    return {key: size for key, size in sizes.items() if key.kind is Kind.EXPERT}


def classes_of(sizes: Mapping[Key, int], alike: float = ALIKE) -> tuple[int, ...]:
    """The sizes of slots that experts of these sizes need, in ascending order."""
    found: list[int] = []
    for size in sorted(set(sizes.values()), reverse=True):
        if not found or size < found[-1] * (1 - alike):
            found.append(size)
    return tuple(reversed(found))


def least_bytes(sizes: Mapping[Key, int]) -> int:
    """The smallest memory that experts of these sizes can pass through, in bytes."""
    return sum(size * min(FEWEST, count) for size, count in _counts(sizes, classes_of(sizes)))


def _counts(sizes: Mapping[Key, int], classes: Sequence[int]) -> list[tuple[int, int]]:
    """(bytes of a slot, number of experts) of each class."""
    numbers = _numbers(list(sizes.values()), classes)
    return [(size, numbers.count(number)) for number, size in enumerate(classes)]


def _numbers(sizes: Sequence[int], classes: Sequence[int]) -> list[int]:
    by_size = {size: next(n for n, most in enumerate(classes) if size <= most) for size in set(sizes)}
    return [by_size[size] for size in sizes]


def share_of(sizes: Mapping[Key, int], used: int, room: int) -> ExpertShare:
    """The slots of experts of these sizes in `room` bytes, which are `least_bytes` or more.

    Each class has the same part of its own experts in memory.
    """
    # Where all have room, none is given away by slots that are larger than what is in them.
    counts = _counts(sizes, classes_of(sizes, 0.0 if room >= sum(sizes.values()) else ALIKE))
    total = sum(size * count for size, count in counts)
    least = sum(size * min(FEWEST, count) for size, count in counts)
    beyond = min(room, total) - least
    fewest = [min(FEWEST, count) for _, count in counts]
    slots = [few + ((count - few) * beyond // (total - least) if total > least else 0)
             for few, (_, count) in zip(fewest, counts, strict=True)]
    layers = tuple(dict.fromkeys(key.number for key in sizes))
    classes = tuple(size for size, _ in counts)
    return ExpertShare(layers, len(sizes) // len(layers), used, tuple(sizes),
                       tuple(_numbers(list(sizes.values()), classes)), classes, tuple(slots))
