"""Which segments stay in memory, how large is the ring for the others, and how long will a pass take?

Pure arithmetic: sizes, a budget and measured rates in, a plan out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.errors import BudgetTooSmall

# One slot is multiplied while the other fills; with fewer, reading and multiplying would take turns.
FEWEST_SLOTS = 2
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured: bytes a second of the backend alone, and weight bytes a second multiplied from memory."""

    read: float
    compute: float


@dataclass(frozen=True, slots=True)
class Plan:
    """`resident` are indices of segments that stay; the others pass through `slots` slots of `slot_bytes`."""

    budget: int
    resident: frozenset[int]
    resident_bytes: int
    slots: int
    slot_bytes: int
    streamed_bytes: int
    predicted_seconds: float

    @property
    def memory(self) -> int:
        """Bytes of weights in memory at most; never above the budget."""
        return self.resident_bytes + self.slots * self.slot_bytes


def minimum_budget(sizes: Sequence[int], constants: int) -> int:
    """The smallest budget that works for segments of these sizes (bytes in a slot)."""
    return constants + min(sum(sizes), FEWEST_SLOTS * max(sizes))


def check_budget(what: str, budget: int, smallest: int) -> None:
    """Raises BudgetTooSmall with the smallest workable figure. In bytes: rounded, the two could read the same."""
    if budget < smallest:
        raise BudgetTooSmall(f"a budget of {budget} bytes is too small for {what}, it needs {smallest}",
                             f"the smallest that works is {mib(smallest)}", field="budget")


def mib(size: int) -> str:
    """A size as a person writes it, rounded up so that the figure works when it is typed back."""
    return f"{-(-size // MIB)}MiB"


def apart(one: int, other: int) -> tuple[str, str]:
    """Two sizes of which a message says that they differ: in bytes, where rounded they would read the same."""
    return (mib(one), mib(other)) if mib(one) != mib(other) else (f"{one} bytes", f"{other} bytes")


def slots_wanted(slot_bytes: int, in_flight: int, count: int, rates: Rates) -> int:
    """Slots that keep the drive busy: the one being multiplied, and room for all reads in flight.

    Where multiplying takes longer than reading, two are enough: the drive waits anyway.
    """
    if rates.compute < rates.read:
        return min(count, FEWEST_SLOTS + 1)
    return min(count, 1 + max(FEWEST_SLOTS, -(-in_flight // slot_bytes)))


def spread(count: int, keep: int) -> list[int]:
    """`keep` of `count` indices, as evenly apart as possible, so that the drive never waits behind a run of them."""
    return [index * count // keep for index in range(keep)] if keep else []


def resident_set(sizes: Sequence[int], room: int) -> frozenset[int]:
    """The largest evenly spread set of segments that fits into `room` bytes."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(sizes[index] for index in spread(len(sizes), middle)) <= room:
            low = middle
        else:
            high = middle - 1
    return frozenset(spread(len(sizes), low))


def predict(streamed: int, total: int, rates: Rates) -> float:
    """Seconds of a pass: reading and multiplying overlap, the slower one decides."""
    return max(streamed / rates.read, total / rates.compute)


def plan(sizes: Sequence[int], constants: int, budget: int, in_flight: int, rates: Rates) -> Plan:
    """Where each segment rests. `in_flight`: bytes that the backend keeps under way.

    Raises BudgetTooSmall with the smallest workable figure.
    """
    total = sum(sizes)
    if budget >= total + constants:
        return Plan(budget, frozenset(range(len(sizes))), total + constants, 0, 0, 0, predict(0, total, rates))
    check_budget("this model", budget, minimum_budget(sizes, constants))
    slot_bytes = max(sizes)
    affordable = (budget - constants) // slot_bytes
    slots = min(affordable, slots_wanted(slot_bytes, in_flight, len(sizes), rates))
    resident = resident_set(sizes, budget - constants - slots * slot_bytes)
    resident_bytes = sum(sizes[index] for index in resident)
    streamed = total - resident_bytes
    return Plan(budget, resident, constants + resident_bytes, slots, slot_bytes, streamed,
                predict(streamed, total, rates))
