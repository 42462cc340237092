"""Which rows does a pass have? Whose tokens they are, where their keys and values lie, whose scores are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvstreamd.errors import KernelError

PAGE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows `first` to `first + count` of a pass: tokens `begin` on of a sequence; `pages` are its own, by KvGroup."""

    first: int
    count: int
    begin: int
    pages: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a pass: stretches, one behind the other. `wanted` are the rows whose scores are asked for."""

    stretches: Sequence[Stretch]
    wanted: Sequence[int]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(stretch.count for stretch in self.stretches)

    def positions(self) -> npt.NDArray[np.int64]:
        """The place of each row's token in its sequence, [rows] int64."""
        return np.concatenate([np.arange(stretch.begin, stretch.begin + stretch.count) for stretch in self.stretches])

    def check(self, pages: Sequence[int], embedded: int) -> None:
        """Raises KernelError unless so many rows are embedded and groups of so many `pages` have what they need."""
        if embedded != self.count:
            raise KernelError(f"{embedded} embedding rows for {self.count} rows", "report this")
        if not all(0 <= row < embedded for row in self.wanted):
            raise KernelError(f"scores wanted of rows that the pass does not have: it has {embedded}", "report this")
        first = 0
        for stretch in self.stretches:
            if stretch.first != first or stretch.begin < 0 or stretch.count < 1:
                raise KernelError(f"a stretch of {stretch.count} rows from {stretch.first} on, not from {first} on",
                                  "report this")
            first += stretch.count
            if len(stretch.pages) != len(pages):
                raise KernelError(f"pages of {len(stretch.pages)} groups, there are {len(pages)}", "report this")
            for own, there in zip(stretch.pages, pages, strict=True):
                _check_pages(own, there, stretch.begin + stretch.count)


def _check_pages(own: Sequence[int], there: int, tokens: int) -> None:
    if len(own) * PAGE_TOKENS < tokens:
        raise KernelError(f"{tokens} tokens in {len(own)} pages", "report this")
    wrong = min(own) if min(own) < 0 else max(own)
    if not 0 <= wrong < there:
        raise KernelError(f"page {wrong} of a cache of {there}", "report this")
