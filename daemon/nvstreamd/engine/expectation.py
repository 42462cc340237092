"""How long do passes take, and how long should they? Rates that were measured at load, corrected by every pass.

The rates measured at load, before anybody is served, are not quite true: other programs start at the same time, and
caches are warm. So a rate of that kind counts only until passes of its width have shown another.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

from nvstreamd.engine.cost import PassCost
from nvstreamd.pieces import Kind
from nvstreamd.weights.flow.assignment import HostRates, link_seconds

RECENT = 32
# Widths that are told apart between a power of two and the next, and as many below.
PARTS = 8


def octave_of(rows: int) -> int:
    """The power of two that so many rows are, at most."""
    return 1 << (rows - 1).bit_length()


def width_of(rows: int) -> int:
    """Passes are alike when they have as many rows, up to a few: a quarter of them at most, one of eight and fewer."""
    step = max(1, octave_of(rows) // PARTS)
    return -(-rows // step) * step


class Rate:
    """`value` are bytes a second: the median of the last rates seen, or `first` before any was."""

    def __init__(self, first: float) -> None:
        self.value = first
        self._seen: deque[float] = deque(maxlen=RECENT)

    def saw(self, nbytes: int, seconds: float) -> None:
        """Takes note of so many bytes in so many seconds."""
        if nbytes and seconds > 0:
            self._seen.append(nbytes / seconds)
            self.value = statistics.median(self._seen)


class Curve:
    """Seconds that weights of one kind take to multiply, by the rows of the pass.

    `first` are bytes a second for numbers of rows that were measured at load. Between widths that are known it is a
    straight line; beyond the widest, time grows with the rows.
    """

    def __init__(self, first: Mapping[int, float]) -> None:
        self._widths = {width_of(rows): (rows, Rate(rate)) for rows, rate in first.items()}
        # In ascending order of rows.
        self._known = sorted(self._widths.values(), key=itemgetter(0))

    def saw(self, rows: int, nbytes: int, seconds: float) -> None:
        """Takes note of so many bytes, multiplied by so many rows."""
        width = width_of(rows)
        rate = self._widths[width][1] if width in self._widths else Rate(nbytes / seconds if seconds > 0 else 0.0)
        rate.saw(nbytes, seconds)
        if rate.value:
            self._widths[width] = (rows, rate)
            self._known = sorted(self._widths.values(), key=itemgetter(0))

    def seconds(self, nbytes: float, rows: int) -> float:
        """The seconds that so many bytes should take."""
        index = bisect_left(self._known, rows, key=itemgetter(0))
        if index == len(self._known):
            at, rate = self._known[-1]
            return nbytes / rate.value * rows / at
        to, other = self._known[index]
        if to == rows or not index:
            return nbytes / other.value
        at, rate = self._known[index - 1]
        part = (rows - at) / (to - at)
        return nbytes * ((1 - part) / rate.value + part / other.value)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes a second: off the drive, over the link where a device has memory of its own, multiplied by kind and rows.

    `host` is what the processor multiplies beside such a device.
    """

    read: float
    link: float | None
    compute: Mapping[Kind, Mapping[int, float]]
    host: HostRates | None = None


class Expectation:
    """The times of the last decode passes and what the rates say of such passes.

    `measured` are the rates of before anybody was served.
    """

    def __init__(self, measured: Measured) -> None:
        link, host = measured.link, measured.host
        self.read = Rate(measured.read)
        self.link = link
        self._beside_host = None if host is None else Curve(host.links)
        self._host = None if host is None else Curve(host.products)
        self._compute = {kind: Curve(rates) for kind, rates in measured.compute.items()}
        # Seconds of a pass that go neither into reads nor into products: rows are laid out, embedded, scores handed on.
        self._beside: deque[float] = deque((0.0,), maxlen=RECENT)
        # Of experts that passes needed, by their rows up to a power of two: the part that was not in memory.
        self._missed: dict[int, deque[float]] = {}
        # What was expected before each decode pass, and what it took.
        self._decoded: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def saw(self, cost: PassCost, *, decode: bool) -> None:
        """Takes note of a pass; of a `decode` pass each row is another request's."""
        if decode:
            self._decoded.append((self.expected(cost), cost.seconds))
        multiply = sum(part.seconds for part in cost.multiplied.values())
        if cost.on_host is not None and self._host is not None:
            multiply += cost.on_host.seconds
            self._host.saw(cost.on_host.rows, cost.on_host.nbytes, cost.on_host.seconds)
        self._beside.append(max(0.0, cost.seconds - cost.waited_seconds - multiply))
        self.read.saw(cost.read_bytes, cost.read_seconds)
        for kind, part in cost.multiplied.items():
            self._compute[kind].saw(part.rows, part.nbytes, part.seconds)
            if kind is Kind.EXPERT and part.nbytes:
                seen = self._missed.setdefault(octave_of(part.rows), deque(maxlen=RECENT))
                seen.append(min(1.0, cost.missed_bytes / part.nbytes))

    def missed_part(self, rows: int, otherwise: float) -> float:
        """The part of the experts that a pass of so many rows needs that will not be in memory, by the last of them.

        `otherwise` before there was one.
        """
        seen = self._missed.get(octave_of(rows))
        return statistics.median(seen) if seen else otherwise

    def multiply(self, kind: Kind, nbytes: float, rows: int) -> float:
        """Seconds that weights of a kind should take to multiply by so many rows."""
        return self._compute[kind].seconds(nbytes, rows)

    def expected(self, cost: PassCost) -> float:
        """Seconds that a pass like this should take: reading and multiplying overlap, the slower one decides."""
        multiply = sum(self.multiply(kind, part.nbytes, part.rows) for kind, part in cost.multiplied.items())
        on_host = 0 if cost.on_host is None else cost.on_host.nbytes
        multiply += self.multiply_on_host(on_host, cost.rows)
        brought = self.bring(cost.brought_bytes, on_host, cost.rows)
        return max(cost.streamed_bytes / self.read.value, brought, multiply + statistics.median(self._beside))

    @property
    def host_rate(self) -> float:
        """Bytes a second that the processor multiplies beside a card in a pass of one row."""
        return 0.0 if self._host is None else 1.0 / self._host.seconds(1.0, 1)

    @property
    def link_beside_host(self) -> float:
        """Bytes a second over the link while the processor multiplies, in a pass of one row."""
        return 0.0 if self._beside_host is None else 1.0 / self._beside_host.seconds(1.0, 1)

    def multiply_on_host(self, nbytes: float, rows: int) -> float:
        """Seconds that the processor should take beside a card for so many bytes and rows."""
        return self._host.seconds(nbytes, rows) if nbytes and self._host is not None else 0.0

    def bring(self, nbytes: float, on_host: float, rows: int) -> float:
        """Seconds that so many bytes should take over the link, while the processor multiplies so many `on_host`."""
        if self.link is None:
            return 0.0
        if not on_host or self._beside_host is None:
            return nbytes / self.link
        return link_seconds(nbytes, self.link, 1.0 / self._beside_host.seconds(1.0, rows),
                            self.multiply_on_host(on_host, rows))

    @property
    def measured_seconds(self) -> float | None:
        """The median of the last decode passes, None before the first."""
        return statistics.median(took for _, took in self._decoded) if self._decoded else None

    @property
    def predicted_seconds(self) -> float | None:
        """The median of what was expected before each of those passes, None before the first."""
        return statistics.median(expected for expected, _ in self._decoded) if self._decoded else None
