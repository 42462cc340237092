"""How does a command name the pages of its buffer? (NVM Express Base Specification 2.0, section 4.1.1)

By Physical Region Pages. PRP1 is the first page. PRP2 is nothing for one page, the second page for two, and for more
the address of a list of all pages but the first. Buffers begin on a page, a command has one page for its list and lists
are never chained: that bounds a command to 513 pages, 2 MiB + 4 KiB.
"""

from __future__ import annotations

import numpy as np

from nvdma.pci.dma import PAGE, Pages

LIST_ENTRIES = PAGE // 8
MAX_PAGES = 1 + LIST_ENTRIES
OFFSET_BITS = np.uint64(PAGE - 1)


def prepare(pages: Pages, list_page: int) -> tuple[int, int, Pages]:
    """PRP1 and PRP2 of a command, and what belongs into its list page: shape (0,) when it needs no list.

    `pages`, shape (n,), are the bus addresses of its buffer's pages, `list_page` that of the page for its list. Raises
    ValueError when the buffer has no page or more than MAX_PAGES, and when an address is no multiple of a page.
    """
    count = len(pages)
    if not 1 <= count <= MAX_PAGES:
        raise ValueError(f"a command of {count} pages has not 1 to {MAX_PAGES}")
    # An offset in any but PRP1 is an error of the command, and the controller might drop the low bits instead.
    if (pages & OFFSET_BITS).any() or list_page % PAGE:
        raise ValueError(f"a bus address of a command's pages is no multiple of {PAGE}")
    if count == 1:
        return int(pages[0]), 0, pages[:0]
    if count == 2:
        return int(pages[0]), int(pages[1]), pages[:0]
    return int(pages[0]), list_page, pages[1:]


def in_one_piece(pages: Pages) -> bool:
    """True when each page, shape (n,) of bus addresses, follows the one before: one descriptor could name them all."""
    return bool((np.diff(pages) == PAGE).all())
