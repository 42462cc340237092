"""Which keys does the processor multiply where they rest in host memory, while the link brings others to the card?

Pure arithmetic: sizes and measured rates in, for each width of a pass a set of keys out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nvstreamd.pieces import Key

# What the processor has to save of a pass, at least, to be put to work for it.
WORTH_IT = 0.05


@dataclass(frozen=True, slots=True)
class HostRates:
    """Bytes a second while both go on at once, by the rows of a pass: of the processor's products, and of the link."""

    products: Mapping[int, float]
    links: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The `keys` that the processor multiplies in passes of up to `rows` rows, of `nbytes` in all."""

    rows: int
    keys: frozenset[Key]
    nbytes: int


@dataclass(frozen=True, slots=True)
class CardPass:
    """A pass, whatever the processor does of it: `card` seconds of products by rows if the card has them all.

    Of `total` bytes `brought` come over the link, at `link` bytes a second while the processor rests, and reads off
    the drive take `reads` seconds.
    """

    total: int
    brought: int
    link: float
    reads: float
    card: Callable[[int], float]

    def seconds(self, rows: int, nbytes: int, host: HostRates) -> float:
        """The seconds of a pass of which the processor multiplies so many bytes.

        Both take turns over the layers, and the link brings others meanwhile: the slower decides.
        """
        on_host = nbytes / host.products[rows]
        link = link_seconds(self.brought - nbytes, self.link, host.links[rows], on_host)
        products = self.card(rows) * (1.0 - nbytes / self.total) + on_host
        return max(link, products, self.reads)


def link_seconds(nbytes: float, alone: float, beside: float, on_host: float) -> float:
    """Seconds that so many bytes take over the link: `beside` the processor's products, which take `on_host` seconds.

    Before and behind them, as in the card's turns, it has the rate that it has `alone`.
    """
    slowly = beside * on_host
    return nbytes / beside if nbytes <= slowly else on_host + (nbytes - slowly) / alone


def spread(count: int, keep: int) -> list[int]:
    """`keep` of `count` indices, as evenly apart as possible, so that nobody waits behind a run of them."""
    return [index * count // keep for index in range(keep)] if keep else []


def assign(resting: Mapping[Key, int], of: CardPass, host: HostRates) -> tuple[Assignment, ...]:
    """By width, the least that makes passes as short as they can be; `resting` may be assigned, in order of a pass.

    All of it on the processor, and nothing, are among what is tried: neither is ever better than the plan.
    """
    keys = list(resting)
    found: list[Assignment] = []
    for rows in sorted(host.products):
        tried: list[tuple[float, frozenset[Key], int]] = []
        for count in range(len(keys) + 1):
            chosen = frozenset(keys[index] for index in spread(len(keys), count))
            nbytes = sum(resting[key] for key in chosen)
            tried.append((of.seconds(rows, nbytes, host), chosen, nbytes))
        best = min(tried, key=lambda each: each[0])
        if best[0] > tried[0][0] * (1.0 - WORTH_IT):
            best = tried[0]
        found.append(Assignment(rows, best[1], best[2]))
    return tuple(found)
