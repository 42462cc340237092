"""Does the processor beside a card get what makes passes shortest, and nothing where it would make them longer?"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.assignment import Assignment, CardPass, HostRates, assign
from support.examples import examples

GB = 1e9
LAYERS = {Key(Kind.LAYER, number): round(0.45 * GB) for number in range(43)}
BROUGHT = sum(LAYERS.values())


def seconds(of: CardPass, host: HostRates, found: Assignment) -> float:
    return of.seconds(found.rows, found.nbytes, host)


def test_what_a_70b_leaves_in_ram_takes_two_fifths_of_what_the_link_takes() -> None:
    """Rates of one H100 and 16 cores (gpulab): 55 GB/s alone, 46 beside products of 92 GB/s; 17 GB rest in VRAM."""
    of = CardPass(BROUGHT + round(17 * GB), BROUGHT, 55 * GB, 0.0, lambda rows: 36 * GB / (2500 * GB))
    host = HostRates({1: 92 * GB, 8: 55 * GB, 32: 12 * GB}, dict.fromkeys((1, 8, 32), 46 * GB))
    one, eight, many = assign(LAYERS, of, host)
    assert (one.rows, eight.rows, many.rows) == (1, 8, 32)
    assert seconds(of, host, one) < 0.42 * BROUGHT / (55 * GB)
    # The bound is both at once, as fast as each is beside the other.
    assert seconds(of, host, one) < 1.1 * BROUGHT / ((92 + 46) * GB)
    # 58 GB/s together are not worth it where the link alone gives 55.
    assert one.nbytes > eight.nbytes > many.nbytes == 0
    # Evenly apart: nobody waits for a run of layers that one of the two has.
    chosen = sorted(key.number for key in eight.keys)
    assert max(b - a for a, b in pairwise(chosen)) <= -(-len(LAYERS) // len(chosen))


def test_a_processor_that_saves_nothing_is_left_to_others() -> None:
    of = CardPass(BROUGHT, BROUGHT, 55 * GB, 0.0, lambda rows: 0.01)
    weak = HostRates({1: 1 * GB, 8: 0.1 * GB}, {1: 54 * GB, 8: 54 * GB})
    assert not any(each.nbytes for each in assign(LAYERS, of, weak))
    # However fast it is: a drive that takes longer than all else decides.
    slow = CardPass(BROUGHT, BROUGHT, 55 * GB, 9.0, lambda rows: 0.01)
    assert not any(each.nbytes for each in assign(LAYERS, slow, HostRates({1: 200 * GB}, {1: 46 * GB})))


@settings(derandomize=True, deadline=None, database=None, max_examples=examples(200))
@given(rates=st.lists(st.floats(0.1, 300), min_size=1, max_size=4), link=st.floats(1, 64),
       beside=st.floats(0.1, 1), card=st.floats(0, 1), reads=st.floats(0, 1), count=st.integers(1, 40))
def test_no_plan_is_worse_than_the_link_alone_or_the_processor_alone(
        rates: list[float], link: float, beside: float, card: float, reads: float, count: int) -> None:
    layers = dict(list(LAYERS.items())[:count])
    nbytes = sum(layers.values())
    of = CardPass(nbytes, nbytes, link * GB, reads, lambda rows: card)
    products = {1 << number: rate * GB for number, rate in enumerate(rates)}
    host = HostRates(products, dict.fromkeys(products, beside * link * GB))
    for found in assign(layers, of, host):
        alone = min(of.seconds(found.rows, 0, host), of.seconds(found.rows, nbytes, host))
        assert seconds(of, host, found) <= alone / 0.949
