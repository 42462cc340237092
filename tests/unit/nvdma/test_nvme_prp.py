"""Do a command's pointers name exactly the pages of its buffer, in order?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.arena import Arena
from nvdma.nvme import prp
from nvdma.pci.dma import PAGE, Contiguous, DmaMemory
from support.nvme_bus import Bus, walk_prps

LIST = 0x9_0000_0000


def addresses(*pages: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """Bus addresses of pages by their number."""
    return np.array(pages, np.uint64) * np.uint64(PAGE)


def test_one_page_needs_no_second_pointer() -> None:
    prp1, prp2, listed = prp.prepare(addresses(5), LIST)
    assert (prp1, prp2, listed.tolist()) == (5 * PAGE, 0, [])


def test_two_pages_need_no_list() -> None:
    prp1, prp2, listed = prp.prepare(addresses(5, 3), LIST)
    assert (prp1, prp2, listed.tolist()) == (5 * PAGE, 3 * PAGE, [])


def test_more_pages_are_listed_without_the_first() -> None:
    prp1, prp2, listed = prp.prepare(addresses(5, 3, 8), LIST)
    assert (prp1, prp2, listed.tolist()) == (5 * PAGE, LIST, [3 * PAGE, 8 * PAGE])


@given(st.integers(1, prp.MAX_PAGES), st.integers(0, 2**32))
def test_a_controller_that_follows_them_meets_the_pages_of_the_buffer(count: int, seed: int) -> None:
    pages = np.random.default_rng(seed).permutation(4 * count)[:count].astype(np.uint64) * np.uint64(PAGE)
    bus = Bus()
    violations: list[str] = []
    with Arena(PAGE) as arena:
        bus.share(DmaMemory(arena.view, arena.address, Contiguous(LIST)))
        prp1, prp2, entries = prp.prepare(pages, LIST)
        listed = entries.tobytes()
        arena.view[: len(listed)] = listed
        met = list(walk_prps(bus, prp1, prp2, count * PAGE, violations))
    assert met == [(page, PAGE) for page in pages.tolist()]
    assert violations == bus.faults == []


@pytest.mark.parametrize(("pages", "list_page", "what"), [
    (addresses(), LIST, "0 pages has not 1 to 513"),
    (addresses(*range(514)), LIST, "514 pages has not 1 to 513"),
    (addresses(1, 2, 3) + np.uint64(512), LIST, "no multiple of 4096"),
    (addresses(1, 2, 3), LIST + 8, "no multiple of 4096"),
])
def test_what_a_controller_would_misread_is_refused(
    pages: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], list_page: int, what: str,
) -> None:
    with pytest.raises(ValueError, match=what):
        prp.prepare(pages, list_page)


@pytest.mark.parametrize(("pages", "expected"), [((5,), True), ((5, 6, 7), True), ((5, 7), False), ((6, 5), False),
                                                 ((5, 6, 6), False)])
def test_pages_in_one_piece_are_those_that_follow_each_other(pages: tuple[int, ...], expected: bool) -> None:
    assert prp.in_one_piece(addresses(*pages)) is expected
