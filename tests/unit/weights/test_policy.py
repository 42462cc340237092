"""Does every key reach the device in time, through any tiers, and are no more bytes moved than must be?"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.plan import Plan, Rates, minimum_budget, plan
from nvstreamd.weights.flow.policy import Cache, Move, Ring
from support.examples import examples
from support.replay import Recorded, Replayed, belady, least_recently_used, load, replay

RECORDED = Path(__file__).parents[2] / "fixtures/passes/smollm2.json"
KEYS = [Key(Kind.LAYER, number) for number in range(8)]
TIERS = st.lists(st.tuples(st.sets(st.sampled_from(KEYS)), st.integers(1, 4)), min_size=1, max_size=3)
PASSES = st.lists(st.tuples(st.sets(st.sampled_from(KEYS)), st.booleans()), min_size=1, max_size=8)


class Machine:
    """Tiers whose moves end in an order that somebody else chooses; each slot remembers what is in it."""

    def __init__(self, tiers: list[tuple[set[Key], int]]) -> None:
        seen: set[Key] = set()
        self.rests: list[set[Key]] = []
        for rests, _ in tiers:
            self.rests.append(rests - seen)
            seen |= rests
        self.cache = Cache(self.rests, [slots for _, slots in tiers])
        self.holds: list[dict[int, Key]] = [{} for _ in tiers]
        self.under_way: list[Move] = []
        self.begun = 0

    def begin(self) -> None:
        while (move := self.cache.choose()) is not None:
            assert all((move.tier, move.slot) != (other.tier, other.slot) for other in self.under_way)
            if move.source is not None:
                assert self.holds[move.tier + 1][move.source] == move.key, "it is read while it is there"
            elif move.tier + 1 < len(self.rests):
                assert move.key in self.rests[move.tier + 1]
            self.holds[move.tier].pop(move.slot, None)
            self.under_way.append(move)
            self.begun += 1

    def end(self, which: int) -> None:
        move = self.under_way.pop(which % len(self.under_way))
        if move.source is not None:
            assert self.holds[move.tier + 1][move.source] == move.key, "it was read over under the copy"
        self.holds[move.tier][move.slot] = move.key
        self.cache.arrived(move)
        self.begin()


@settings(derandomize=True, deadline=None, database=None, max_examples=examples(300))
@given(TIERS, PASSES, st.lists(st.integers(0, 11), min_size=1, max_size=40))
def test_every_key_arrives_whatever_ends_first(tiers: list[tuple[set[Key], int]], passes: list[tuple[set[Key], bool]],
                                               ends: list[int]) -> None:
    """Passes need other keys than the one before, and some are cut short; nothing waits for ever."""
    machine, turn = Machine(tiers), 0
    for needed, cut in passes:
        keys = sorted(needed, key=KEYS.index)
        machine.cache.expect(keys)
        machine.begin()
        for key in keys[: len(keys) // 2] if cut else keys:
            if key in machine.rests[0]:
                continue
            while (slot := machine.cache.take(key)) is None:
                assert machine.under_way, f"{key.name} never comes"
                machine.end(ends[turn % len(ends)])
                turn += 1
            if ends[turn % len(ends)] % 2 and machine.under_way:
                machine.end(ends[turn % len(ends)])
            assert machine.holds[0][slot] == key
            machine.cache.release(slot)
            machine.begin()


def test_what_no_pass_will_take_gives_its_slot_back_when_it_has_arrived() -> None:
    ring = Ring(2)
    ring.expect(KEYS[:4])
    first, second = ring.begin(KEYS[0]), ring.begin(KEYS[1])
    ring.arrived(first)
    assert ring.next is None
    assert ring.expect(KEYS[4:]) == 0
    assert ring.begin(KEYS[4]) == first and ring.next is None, "a move goes on into the other slot"
    ring.arrived(second)
    assert ring.next == KEYS[5] and ring.begin(KEYS[5]) == second


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """A prompt of five passes, of which four need no head, and 23 decode passes of SmolLM2."""
    return load(RECORDED)


def moved_by(recorded: Recorded, rests: AbstractSet[Key]) -> list[int]:
    """Bytes that each pass needs of what does not rest."""
    return [sum(recorded.sizes[key] for key, _ in each if key not in rests) for each in recorded.passes]


def served(recorded: Recorded, part: float, read: float) -> tuple[Plan, Replayed]:
    """The recorded passes under a budget between the smallest and everything, from a drive of that many bytes/s."""
    total = sum(recorded.sizes.values())
    smallest = minimum_budget(recorded.sizes, 0)
    budget = smallest + int(part * (total - smallest))
    compute = sum(recorded.sizes[key] for key in recorded.uses) / recorded.compute
    found = plan(recorded.sizes, 0, (budget,), 4 << 20, Rates(compute, (read,)))
    return found, replay(recorded, found, (read,))


@pytest.mark.parametrize("read", [5e8, 3e9, 2e10])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7])
def test_recorded_passes_take_what_their_bytes_or_their_products_take(recorded: Recorded, part: float,
                                                                      read: float) -> None:
    """Reads go on under products: a pass takes the longer of both, not their sum."""
    found, replayed = served(recorded, part, read)
    needed = moved_by(recorded, found.tiers[0].rests)
    ahead = found.tiers[0].slots * found.tiers[0].slot_bytes
    # Where the kind of pass changes, what was read ahead was not needed.
    assert sum(needed) <= replayed.moved[0] <= sum(needed) + 3 * ahead
    bound = sum(max(nbytes / read, sum(seconds for _, seconds in each))
                for nbytes, each in zip(needed, recorded.passes, strict=True))
    # Pieces of the head are multiplied faster than layers: two slots cannot even that out.
    assert 0.9 * bound <= replayed.seconds <= 1.08 * bound, replayed.seconds / bound


@pytest.mark.parametrize("part", [0.3, 0.7])
def test_recorded_passes_read_little_more_than_perfect_foresight_would(recorded: Recorded, part: float) -> None:
    """LRU reads everything, over and over: what is used next is always what was thrown out last."""
    found, replayed = served(recorded, part, 3e9)
    own = found.tiers[0]
    capacity = len(own.rests) + own.slots
    best, recent = (sum(recorded.sizes[key] for key in policy(recorded.uses, capacity))
                    for policy in (belady, least_recently_used))
    assert best <= replayed.moved[0] + own.slots * own.slot_bytes + own.resting
    # A slot that fills while another is multiplied cannot keep a key: that is the price of reading ahead.
    behind = own.slots * own.slot_bytes * len(recorded.passes)
    assert replayed.moved[0] <= best + behind and replayed.moved[0] < 0.8 * recent


def test_a_second_tier_is_filled_behind_the_first(recorded: Recorded) -> None:
    """As with a card: part rests in VRAM, part in RAM, the rest comes off the drive through both."""
    sizes = recorded.sizes
    total = sum(sizes.values())
    compute = 4 * sum(sizes[key] for key in recorded.uses) / recorded.compute
    found = plan(sizes, 0, (total // 3, total // 3), 4 << 20, Rates(compute, (2e10, 3e9)))
    replayed = replay(recorded, found, (2e10, 3e9))
    near, far = found.tiers
    assert near.rests and far.rests and found.streamed_bytes
    copied, read = moved_by(recorded, near.rests), moved_by(recorded, near.rests | far.rests)
    slack = 3 * (near.slots * near.slot_bytes + far.slots * far.slot_bytes)
    assert sum(copied) <= replayed.moved[0] <= sum(copied) + slack
    assert sum(read) <= replayed.moved[1] <= sum(read) + slack
    bound = sum(max(over / 2e10, off / 3e9, sum(seconds for _, seconds in each))
                for over, off, each in zip(copied, read, recorded.passes, strict=True))
    assert 0.9 * bound <= replayed.seconds <= 1.1 * bound, replayed.seconds / bound
