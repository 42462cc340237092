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
    prps = prp.prepare(addresses(5)[None, :], addresses(9))
    assert (prps.prp1.tolist(), prps.prp2.tolist(), prps.lists.shape) == ([5 * PAGE], [0], (1, 0))


def test_two_pages_need_no_list() -> None:
    prps = prp.prepare(addresses(5, 3)[None, :], addresses(9))
    assert (prps.prp1.tolist(), prps.prp2.tolist(), prps.lists.shape) == ([5 * PAGE], [3 * PAGE], (1, 0))


def test_more_pages_are_listed_without_the_first() -> None:
    prps = prp.prepare(addresses(5, 3, 8)[None, :], addresses(9))
    assert (prps.prp1.tolist(), prps.prp2.tolist()) == ([5 * PAGE], [9 * PAGE])
    assert prps.lists.tolist() == [[3 * PAGE, 8 * PAGE]]


def test_many_commands_keep_their_pages_apart() -> None:
    prps = prp.prepare(addresses(*range(12)).reshape(3, 4), addresses(20, 21, 22))
    assert prps.prp1.tolist() == [0, 4 * PAGE, 8 * PAGE]
    assert prps.prp2.tolist() == [20 * PAGE, 21 * PAGE, 22 * PAGE]
    assert (prps.lists // np.uint64(PAGE)).tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]


@given(st.integers(1, prp.MAX_PAGES), st.integers(0, 2**32))
def test_a_controller_that_follows_them_meets_the_pages_of_the_buffer(count: int, seed: int) -> None:
    pages = np.random.default_rng(seed).permutation(4 * count)[:count].astype(np.uint64) * np.uint64(PAGE)
    bus = Bus()
    violations: list[str] = []
    with Arena(PAGE) as arena:
        bus.share(DmaMemory(arena.view, arena.address, Contiguous(LIST)))
        prps = prp.prepare(pages[None, :], np.array([LIST], np.uint64))
        listed = prps.lists[0].tobytes()
        arena.view[: len(listed)] = listed
        met = list(walk_prps(bus, int(prps.prp1[0]), int(prps.prp2[0]), count * PAGE, violations))
    assert met == [(page, PAGE) for page in pages.tolist()]
    assert violations == bus.faults == []


@pytest.mark.parametrize(("pages", "lists", "what"), [
    (addresses()[None, :], addresses(1), "0 pages has not 1 to 513"),
    (addresses(*range(514))[None, :], addresses(1), "514 pages has not 1 to 513"),
    (addresses(1, 2, 3)[None, :], addresses(1, 2), "do not match"),
    (addresses(1, 2, 3), addresses(1), "do not match"),
    (addresses(1, 2, 3)[None, :] + np.uint64(512), addresses(1), "no multiple of 4096"),
    (addresses(1, 2, 3)[None, :], addresses(1) + np.uint64(8), "no multiple of 4096"),
])
def test_what_a_controller_would_misread_is_refused(
    pages: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], lists: np.ndarray[tuple[int, ...], np.dtype[np.uint64]],
    what: str,
) -> None:
    with pytest.raises(ValueError, match=what):
        prp.prepare(pages, lists)
