"""Do the experts that are used most come to lie in a device's own memory, and does nobody lose one in use?"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from nvstreamd.weights.flow.near_cache import PASSING, NearCache, Promotion

EXPERTS = 24


def always(expert: int) -> bool:
    return True


def test_the_hottest_come_to_stay_and_leave_only_for_clearly_hotter_ones() -> None:
    cache, heat = NearCache([0] * EXPERTS, [8]), np.linspace(0.5, 0.1, EXPERTS)
    everybody = np.arange(EXPERTS)
    assert 8 - PASSING == 4
    cache.look(heat, everybody)
    came = [found for _ in range(9) if (found := cache.choose_idle(always)) is not None]
    assert [(found.expert, found.stays, found.gone) for found in came] == [(each, True, -1) for each in range(4)]
    for found in came:
        cache.arrived(found)
    heat[10] = 1.1 * heat[3]
    cache.look(heat, everybody)
    assert cache.choose_idle(always) is None and not cache.wants(always)
    heat[10] = 2.0 * heat[3]
    cache.look(heat, everybody)
    changed = cache.choose_idle(always)
    assert changed is not None and (changed.expert, changed.gone) == (10, 3)
    assert not cache.there(3) and not cache.there(10)
    cache.arrived(changed)
    assert cache.there(10) and cache.take([3, 10]) == (10,)


def test_who_passes_through_makes_room_for_the_next_and_drives_out_nobody() -> None:
    cache = NearCache([0] * EXPERTS, [8])
    cache.look(np.linspace(0.5, 0.1, EXPERTS), np.arange(4))
    while (found := cache.choose_idle(always)) is not None:
        cache.arrived(found)
    cache.pass_through(range(4, EXPERTS))
    served = []
    while cache.wants(always):
        coming = []
        while (found := cache.choose(always)) is not None:
            assert not found.stays and found.gone < 0
            coming.append(found)
        assert 1 <= len(coming) <= PASSING
        for each in coming:
            cache.arrived(each)
        for each in coming:
            served.append(each.expert)
            cache.done(each.expert)
            assert not cache.there(each.expert)
    assert served == list(range(4, EXPERTS)) and all(map(cache.there, range(4)))


def test_a_need_that_ends_early_leaves_nothing_behind() -> None:
    cache = NearCache([0] * EXPERTS, [2])
    cache.pass_through([5, 6])
    under_way = cache.choose(always)
    assert under_way is not None and under_way.expert == 5
    cache.forget([5, 6])
    assert cache.choose(always) is None
    cache.arrived(under_way)
    assert not cache.there(5)
    cache.pass_through([7])
    again = cache.choose(always)
    assert again is not None and again.slot == under_way.slot


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_has_two_experts_and_none_goes_while_it_is_held(seed: int) -> None:
    drawn = random.Random(seed)
    classes = [number % 2 for number in range(EXPERTS)]
    slots = [drawn.randint(1, 7), drawn.randint(1, 7)]
    cache, held, under_way = NearCache(classes, slots), Counter[int](), list[Promotion]()
    here: set[int] = set()
    for _ in range(400):
        here ^= {drawn.randrange(EXPERTS)}
        match drawn.randrange(6):
            case 0:
                held.update(cache.take(drawn.sample(range(EXPERTS), 5)))
            case 1:
                wanted = [each for each in drawn.sample(range(EXPERTS), 3) if not cache.there(each) and not held[each]]
                cache.pass_through(wanted)
                held.update(wanted)
            case 2:
                cache.look(np.array([drawn.random() for _ in range(EXPERTS)]), np.array(sorted(here), np.int64))
            case 3:
                chosen = cache.choose(here.__contains__) or cache.choose_idle(here.__contains__)
                if chosen is not None:
                    assert chosen.expert in here and 0 <= chosen.slot < slots[classes[chosen.expert]]
                    assert chosen.gone < 0 or (not held[chosen.gone] and not cache.there(chosen.gone))
                    under_way.append(chosen)
            case 4 if under_way:
                cache.arrived(under_way.pop(drawn.randrange(len(under_way))))
            case 5 if (ready := [each for each in held.elements() if cache.there(each)]):
                expert = drawn.choice(ready)
                cache.done(expert)
                held[expert] -= 1
        coming = {each.expert for each in under_way}
        placed = [(classes[each], cache.slot(each)) for each in range(EXPERTS) if cache.there(each) or each in coming]
        assert len(placed) == len(set(placed))
        assert not any(cache.there(each) and each in coming for each in range(EXPERTS))
