"""How does a command name the pages of its buffer? (NVM Express Base Specification 2.0, section 4.1.1)

By Physical Region Pages. PRP1 is the first page. PRP2 is nothing for one page, the second page for two, and for more
the address of a list of all pages but the first. Buffers begin on a page, a command has one page for its list and lists
are never chained: that bounds a command to 513 pages, 2 MiB + 4 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvdma.pci.dma import PAGE, Pages

LIST_ENTRIES = PAGE // 8
MAX_PAGES = 1 + LIST_ENTRIES


@dataclass(frozen=True, slots=True)
class Prps:
    """The data pointers of n commands: `prp1` and `prp2` of shape (n,), and `lists`, row i for the list page of i.

    `lists` has shape (n, 0) when the commands have no lists.
    """

    prp1: Pages
    prp2: Pages
    lists: Pages


def prepare(pages: Pages, list_pages: Pages) -> Prps:
    """The PRPs of commands of equal length: `pages`, shape (commands, pages each), are bus addresses of their buffers.

    `list_pages`, shape (commands,), are those of the pages for their lists. Raises ValueError when a buffer has no
    page or more than MAX_PAGES, when an address is no multiple of a page and when the shapes do not match.
    """
    if pages.ndim != 2 or list_pages.shape != pages.shape[:1]:
        raise ValueError(f"pages of shape {pages.shape} and lists of shape {list_pages.shape} do not match")
    each = pages.shape[1]
    if not 1 <= each <= MAX_PAGES:
        raise ValueError(f"a command of {each} pages has not 1 to {MAX_PAGES}")
    _check_aligned(pages)
    nothing = pages[:, :0]
    if each == 1:
        return Prps(pages[:, 0], np.zeros(len(pages), np.uint64), nothing)
    if each == 2:
        return Prps(pages[:, 0], pages[:, 1], nothing)
    _check_aligned(list_pages)
    return Prps(pages[:, 0], list_pages, pages[:, 1:])


def _check_aligned(addresses: Pages) -> None:
    # An offset in any but PRP1 is an error of the command, and the controller might drop the low bits instead.
    if np.any(addresses % np.uint64(PAGE)):
        raise ValueError(f"a bus address of a command's pages is no multiple of {PAGE}")
