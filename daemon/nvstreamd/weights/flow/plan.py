"""Which keys rest in which tier, how many slots do the others pass through, and how long will a pass take?

Pure arithmetic: sizes, budgets and measured rates in, a plan out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nvstreamd.errors import BudgetTooSmall
from nvstreamd.pieces import Key, Kind
from nvstreamd.sizes import mib
from nvstreamd.weights.flow.assignment import Assignment, spread
from nvstreamd.weights.flow.expert_plan import ExpertShare, experts_of, least_bytes, share_of

# One slot is multiplied while the other fills; with fewer, moving and multiplying would take turns.
FEWEST_SLOTS = 2
# How many times as fast one of both has to be as the other, for the faster to be through with a slot long before the
# slower wants it; and how many times what is in flight a slot has to hold, for reads to go on meanwhile.
CLEARLY, LARGE = 2.0, 4


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured bytes a second: weights multiplied from the device's memory, and moved into each tier.

    The last of `moves` is what the drive gives.
    """

    compute: float
    moves: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """One tier's part: the keys that rest in it, in `resting` bytes; the others pass through `slots` of `slot_bytes`.

    `moved` are the bytes that a pass brings into it.
    """

    rests: frozenset[Key]
    resting: int
    slots: int
    slot_bytes: int
    moved: int

    @property
    def memory(self) -> int:
        """Bytes of the tier that are used; never above its budget."""
        return self.resting + self.slots * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """The share of each tier, the device's own first, and the seconds of a pass of one row.

    Experts have slots in memory that they are multiplied in: in the device's own, or beside such a device in the
    host's, `near` being those of the device's; an expert of `many` rows in a pass is worth being brought there.
    `assignments` are what the processor multiplies beside a device with memory of its own, by the rows of a pass, in
    ascending order.
    """

    tiers: tuple[Share, ...]
    predicted_seconds: float
    experts: ExpertShare | None = None
    missed_bytes: int = 0
    assignments: tuple[Assignment, ...] = ()
    near: ExpertShare | None = None
    many: int = 1

    def assigned(self, rows: int) -> Assignment:
        """What the processor multiplies in passes of so many rows; of wider ones than were planned, nothing."""
        return next((each for each in self.assignments if rows <= each.rows), Assignment(rows, frozenset(), 0))

    @property
    def streamed_bytes(self) -> int:
        """Bytes that a pass moves off the drive: of experts as many as would be missing if all were used alike."""
        return self.tiers[-1].moved + self.missed_bytes


def minimum_budget(sizes: Mapping[Key, int], constants: int) -> int:
    """The smallest budget that works for segments of these sizes (bytes in a slot)."""
    dense = dense_of(sizes).values()
    return constants + min(sum(dense), FEWEST_SLOTS * max(dense)) + least_bytes(experts_of(sizes))


def dense_of(sizes: Mapping[Key, int]) -> dict[Key, int]:
    """The sizes of what every row needs."""
    return {key: size for key, size in sizes.items() if key.kind is not Kind.EXPERT}


def check_budget(what: str, budget: int, smallest: int) -> None:
    """Raises BudgetTooSmall with the smallest workable figure. In bytes: rounded, the two could read the same."""
    if budget < smallest:
        raise BudgetTooSmall(f"a budget of {budget} bytes is too small for {what}, it needs {smallest}",
                             f"the smallest that works is {mib(smallest)}", field="budget")


def slots_wanted(slot_bytes: int, in_flight: int, count: int, move: float, consume: float) -> int:
    """Slots that keep whoever is slower busy, whoever moves bytes into them or consumes them there.

    Two are enough where one is clearly faster: it is through with its slot while the other is in the middle of its own.
    Else there is one more for when they meet; and room for all reads in flight, where consuming is not what takes long.
    """
    clear = max(move, consume) >= CLEARLY * min(move, consume) and slot_bytes >= LARGE * in_flight
    if consume < move or clear:
        return min(count, FEWEST_SLOTS + (not clear))
    return min(count, 1 + max(FEWEST_SLOTS, -(-in_flight // slot_bytes)))


def resting(sizes: Mapping[Key, int], room: int) -> frozenset[Key]:
    """The largest evenly spread set of keys that fits into `room` bytes."""
    keys = list(sizes)
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(sizes[keys[index]] for index in spread(len(keys), middle)) <= room:
            low = middle
        else:
            high = middle - 1
    return frozenset(keys[index] for index in spread(len(keys), low))


def plan(sizes: Mapping[Key, int], constants: int, budgets: Sequence[int], in_flight: int, rates: Rates) -> Plan:
    """Where each key rests. `sizes` are bytes in a slot, in the order of a pass; `budgets` one a tier, in bytes.

    `constants` rest in the first tier. `in_flight`: bytes that the backend keeps under way. A tier that nothing is left
    for has no share. Raises BudgetTooSmall with the smallest workable figure.
    """
    shares: list[Share] = []
    left, beside = dict(sizes), constants
    consume = rates.compute
    for budget, move in zip(budgets, rates.moves, strict=True):
        shares.append(share(left, beside, budget, in_flight, move, consume))
        consume = move
        left = {key: size for key, size in left.items() if key not in shares[-1].rests}
        beside = 0
        if not left:
            break
    return planned(shares, sum(sizes.values()), rates)


def planned(shares: Sequence[Share], multiplied: int, rates: Rates) -> Plan:
    """The plan of these shares, of whose keys a pass multiplies so many bytes: the slowest of all decides."""
    moving = (each.moved / move for each, move in zip(shares, rates.moves, strict=False))
    return Plan(tuple(shares), max(multiplied / rates.compute, *moving))


def with_own_memory(sizes: Mapping[Key, int], forms: Mapping[Key, int], constants: int, budgets: tuple[int, int],
                    in_flight: int, rates: Rates, multiplied: int) -> Plan:
    """The plan of a device with memory of its own, in front of the host's; `budgets` are those of both.

    There weights have `forms`, in the host's memory and on the drive `sizes`; `constants` bytes are in both. What the
    device keeps lies in neither of the others; whatever else passes through the host's memory, or rests there. Experts
    rest in the device's memory, all of them. A pass of one row multiplies `multiplied` bytes. Raises BudgetTooSmall.
    """
    experts, dense = experts_of(forms), dense_of(forms)
    beside = sum(experts.values())
    check_budget("a card, with all experts in its memory,", budgets[0],
                 beside + min(sum(dense.values()), FEWEST_SLOTS * max(dense.values())))
    # A slot is consumed in an instant there, but not one by one: what the processor multiplies comes in between.
    found = _in_two(sizes, forms, constants, budgets, in_flight, rates, multiplied, rates.moves[0])
    if _reads_decide(found, rates):
        # It will multiply nothing then: a slot less is enough.
        found = _in_two(sizes, forms, constants, budgets, in_flight, rates, multiplied, rates.compute)
    return found


def _in_two(sizes: Mapping[Key, int], forms: Mapping[Key, int], constants: int, budgets: tuple[int, int],
            in_flight: int, rates: Rates, multiplied: int, consume: float) -> Plan:
    """The same, of a device whose slots are consumed at so many bytes a second."""
    experts, dense = experts_of(forms), dense_of(forms)
    own = share(dense, sum(experts.values()), budgets[0], 0, rates.moves[0], consume)
    own = replace(own, rests=own.rests | set(experts))
    left = {key: size for key, size in sizes.items() if key not in own.rests}
    if not left:
        return planned((own,), multiplied, rates)
    # What passes on to the device is what is moved, in the form in which it comes.
    own = replace(own, moved=sum(left.values()))
    behind = share(left, constants, budgets[1], in_flight, rates.moves[1], rates.moves[0])
    return planned((own, behind), multiplied, rates)


def _reads_decide(found: Plan, rates: Rates) -> bool:
    """True when the drive takes longer than the link."""
    return len(found.tiers) > 1 and found.tiers[1].moved / rates.moves[1] > found.tiers[0].moved / rates.moves[0]


def with_experts_beside(sizes: Mapping[Key, int], forms: Mapping[Key, int], used: int, constants: int,
                        budgets: tuple[int, int], in_flight: int, rates: Rates, multiplied: int) -> Plan:
    """The same where experts rest in host memory, or pass through it, and the processor multiplies them there.

    What every row needs comes first in both memories. In the device's own, experts have what that leaves. Raises
    BudgetTooSmall.
    """
    experts, dense = experts_of(sizes), dense_of(sizes)
    check_budget("a mixture of experts beside a card", budgets[1], constants + least_bytes(experts))
    found = with_own_memory(dense, dense_of(forms), constants, (budgets[0], budgets[1] - least_bytes(experts)),
                            in_flight, rates, multiplied)
    taken = constants if len(found.tiers) == 1 else found.tiers[1].memory
    here = share_of(experts, used, budgets[1] - taken)
    left, near_forms = budgets[0] - found.tiers[0].memory, experts_of(forms)
    near = share_of(near_forms, used, left) if left >= least_bytes(near_forms) else None
    a_row = sum(experts.values()) * used // here.per_layer
    missed = int(a_row * max(0.0, 1.0 - here.part - (0.0 if near is None else near.part)))
    return replace(found, experts=here, near=near, missed_bytes=missed,
                   predicted_seconds=max(found.predicted_seconds, (found.tiers[-1].moved + missed) / rates.moves[-1]))


def with_experts(sizes: Mapping[Key, int], used: int, constants: int, budget: int, in_flight: int,
                 rates: Rates) -> Plan:
    """The plan of a model in one tier, of whose experts a row needs `used` of each layer.

    What every row needs comes first, the experts have what is left. Raises BudgetTooSmall.
    """
    experts, dense = experts_of(sizes), dense_of(sizes)
    if not experts:
        return plan(sizes, constants, (budget,), in_flight, rates)
    check_budget("this model", budget, minimum_budget(sizes, constants))
    found = plan(dense, constants, (budget - least_bytes(experts),), in_flight, rates)
    own = share_of(experts, used, budget - found.tiers[0].memory)
    a_row = sum(experts.values()) * used // own.per_layer
    missed = int(a_row * (1.0 - own.part))
    seconds = max((sum(dense.values()) + a_row) / rates.compute, (found.streamed_bytes + missed) / rates.moves[0])
    return replace(found, predicted_seconds=seconds, experts=own, missed_bytes=missed)


def share(sizes: Mapping[Key, int], beside: int, budget: int, in_flight: int, move: float, consume: float) -> Share:
    """One tier's, of the keys that rest in none before it; `beside` bytes rest in it in any case.

    Others come at `move` bytes a second, and are multiplied, or move on, at `consume`.
    """
    total = sum(sizes.values())
    if budget >= total + beside:
        return Share(frozenset(sizes), total + beside, 0, 0, 0)
    check_budget("this model", budget, minimum_budget(sizes, beside))
    slot_bytes = max(sizes.values())
    affordable = (budget - beside) // slot_bytes
    slots = min(affordable, slots_wanted(slot_bytes, in_flight, len(sizes), move, consume))
    rests = resting(sizes, budget - beside - slots * slot_bytes)
    kept = sum(sizes[key] for key in rests)
    return Share(rests, beside + kept, slots, slot_bytes, total - kept)
