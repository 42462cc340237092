"""How many tokens of prompts does the next pass take? As many as cost nobody anything, by what passes take.

While a pass reads weights anyway, tokens that are multiplied in that time are free. Where nobody waits for a token of
their own, a pass may take longer: fewer passes read fewer bytes. Pure: rates in, a number out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nvstreamd.engine.expectation import Expectation
from nvstreamd.pieces import Kind
from nvstreamd.weights.flow.assignment import Assignment
from nvstreamd.weights.flow.expert_plan import ExpertShare
from nvstreamd.weights.flow.plan import Plan
from nvstreamd.weights.packed.manifest import Segment

# However slow the machine is, a prompt gets on; and a pass stays one that a cancel or another user can wait for.
# Kernels take rows by so many: fewer cost as much.
TOGETHER = 8
FEWEST, MOST = TOGETHER, 4096
# A pass beside which others decode may take so many times what it takes without a prompt. Where more users wait for
# their first token than decode, it may be stretched for each of them.
STRETCH = 1.2
# After one that took longer than was foreseen, at most so many without; after one that was meant to be long, so many.
LONGEST_REST, MOST_RESTS = 8, 64
TINY_SECONDS = 1e-9
# Tokens a pass, its rests counted, by which more in one pass have to be better than fewer in each.
CLEARLY = 1.25
# How much a single pass changes what passes without prompts are believed to take.
SMOOTHING = 0.2
# One beside which nobody decodes: so many times its reads, or so many seconds.
BEYOND_READS = 2.0
UNHURRIED_SECONDS = 0.5
# Or up to these seconds, while twice as many tokens take so much less each: experts are read and unpacked for more.
LONGEST_SECONDS, WORTH_IT = 2.0, 0.9
# Bytes of activations that passes may take.
ACTIVATIONS = 128 << 20


class Pacing(Protocol):
    """What the scheduler asks before each pass. `waiting`: users with prompts for each user who decodes, at least 1."""

    def tokens(self, decoding: int, waiting: float = 1.0) -> int:
        """Tokens of prompts that a pass takes beside so many requests that decode, at least 1."""

    def seconds(self, rows: int, wanted: int) -> float:
        """The seconds of a pass of so many rows, of which so many want scores."""

    def allowed(self, without: float, waiting: float = 1.0) -> float:
        """The seconds that a pass with tokens of prompts may take, if the others' tokens take so many without them."""


class Overrun:
    """The seconds by which passes with tokens of prompts took longer than they may, for those who decode beside them.

    The cost model cannot know everything (attention over a long past, another program), and prompts get on by FEWEST
    tokens whatever those cost. What a pass took too long, later passes make up by leaving prompts out.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._without: float | None = None

    @property
    def due(self) -> bool:
        """True when the next pass should be one without prompts."""
        return self._seconds > 0.0

    def saw(self, seconds: float, rows: int, decoding: int, pacing: Pacing, waiting: float = 1.0) -> None:
        """Takes note of a pass of so many rows, some of which `decoding` requests decoded, the others of prompts."""
        prompts = rows > decoding
        if not prompts:
            before = seconds if self._without is None else self._without
            self._without = before + SMOOTHING * (seconds - before)
        # Until there was one without prompts: as long as it should take.
        without = pacing.seconds(decoding, decoding) if self._without is None else self._without
        allowed = pacing.allowed(without, waiting)
        beyond = without - allowed
        if prompts:
            # The bound: however long a pass took that nobody meant to be long, prompts have their turn after so many.
            meant = pacing.seconds(rows, decoding) - allowed if rows - decoding > FEWEST else 0.0
            beyond = min(seconds - allowed, max(meant, LONGEST_REST * (allowed - without)))
        self._seconds = max(0.0, self._seconds + beyond)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number."""

    count: int

    def tokens(self, decoding: int, waiting: float = 1.0) -> int:
        """That number."""
        return self.count

    def seconds(self, rows: int, wanted: int) -> float:
        """One for each row."""
        return float(rows)

    def allowed(self, without: float, waiting: float = 1.0) -> float:
        """Any number of seconds."""
        return math.inf


@dataclass(frozen=True, slots=True)
class PassBytes:
    """The bytes of weights by kind that a pass multiplies, those off the drive, and those that are `brought`.

    The latter come into a device's own memory, where it has one, but for what the processor multiplies instead, which
    is layers (`assigned`, by the plan). Of `experts`, where there are any, a pass needs those that its rows touch: all
    of them are what is told here.
    """

    multiplied: Mapping[Kind, int]
    streamed: Mapping[Kind, int]
    experts: ExpertShare | None = None
    brought: Mapping[Kind, int] = field(default_factory=dict)
    assigned: Callable[[int], Assignment] = Plan((), 0.0).assigned

    @staticmethod
    def of(segments: Iterable[Segment], plan: Plan) -> PassBytes:
        """Those of a model by its plan."""
        multiplied, streamed, brought = (dict.fromkeys(Kind, 0) for _ in range(3))
        for segment in segments:
            kind = segment.key.kind
            multiplied[kind] += segment.nbytes
            brought[kind] += 0 if segment.key in plan.tiers[0].rests or kind is Kind.EXPERT else segment.nbytes
            streamed[kind] += 0 if any(segment.key in tier.rests for tier in plan.tiers) else segment.read_bytes
        return PassBytes(multiplied, streamed, plan.experts, brought, plan.assigned)


class ByCost:
    """By the rates that passes showed. `latency`: the seconds that a pass beside others may take, None for STRETCH.

    `most` bounds the number in any case.
    """

    def __init__(self, expectation: Expectation, passes: PassBytes, latency: float | None, most: int) -> None:
        self.expectation = expectation
        self.passes = passes
        self.latency = latency
        self.most = max(1, most)

    def tokens(self, decoding: int, waiting: float = 1.0) -> int:
        """The most tokens whose pass takes no longer than it may."""
        low, high = min(FEWEST, self.most), self.most
        while low < high:
            middle = (low + high + 1) // 2
            if self._suits(decoding + middle, decoding, waiting):
                low = middle
            else:
                high = middle - 1
        while not decoding and 2 * low <= self.most and self._worth(2 * low):
            low *= 2
        if decoding and self.latency is None:
            low = self._with_rests(low, decoding, waiting)
        return low // TOGETHER * TOGETHER or low

    def _with_rests(self, count: int, decoding: int, waiting: float) -> int:
        """So many tokens in each pass, or clearly more in one and none in some after it: `Overrun` sees to those.

        What a pass of many rows costs once, as experts that are read for the first of them or a processor that leaves
        its part to the link, is paid seldom then. Those who decode wait no longer on average.
        """
        without = self.seconds(decoding, decoding)
        allowed = self.allowed(without, waiting)

        def rests(tokens: int) -> int:
            beyond = self.seconds(decoding + tokens, decoding) - allowed
            return math.ceil(max(0.0, beyond) / max(allowed - without, TINY_SECONDS))

        best, wider = count / (1 + rests(count)), 2 * count
        while wider <= self.most and rests(wider) <= MOST_RESTS:
            if wider / (1 + rests(wider)) > CLEARLY * best:
                count, best = wider, wider / (1 + rests(wider))
            wider *= 2
        return count

    def allowed(self, without: float, waiting: float = 1.0) -> float:
        """The `latency`, or a pass without and a STRETCH for each who waits; never less than a pass takes anyway."""
        return max(without, self.latency or without * (1.0 + (STRETCH - 1.0) * waiting))

    def _worth(self, rows: int) -> bool:
        """True when so many tokens take clearly less each than half of them, and not too long."""
        seconds = self.seconds(rows, 0)
        return seconds <= LONGEST_SECONDS and seconds / 2 <= WORTH_IT * self.seconds(rows // 2, 0)

    def seconds(self, rows: int, wanted: int) -> float:
        """Reads and products overlap: the slower of both."""
        return max(self._reads(rows, wanted), self._multiply(rows, wanted))

    def _suits(self, rows: int, decoding: int, waiting: float) -> bool:
        """True when a pass of so many rows, of which so many decode, takes no longer than it may."""
        if not decoding:
            # Its own reads are what a longer pass is for: the next one would do them again.
            return self._multiply(rows, 0) <= max(BEYOND_READS * self._reads(rows, 0), UNHURRIED_SECONDS)
        return self.seconds(rows, decoding) <= self.allowed(self.seconds(decoding, decoding), waiting)

    def _reads(self, rows: int, wanted: int) -> float:
        read = sum(self._streamed(kind, rows) for kind in self._kinds(wanted)) / self.expectation.read.value
        on_host = self.passes.assigned(rows).nbytes
        brought = sum(self.passes.brought.get(kind, 0) for kind in self._kinds(wanted)) - on_host
        return max(read, self.expectation.bring(brought, on_host, rows))

    def _streamed(self, kind: Kind, rows: int) -> float:
        experts, nbytes = self.passes.experts, self.passes.streamed.get(kind, 0)
        if kind is not Kind.EXPERT or experts is None:
            return nbytes
        return nbytes * experts.touched(rows) * self.expectation.missed_part(rows, 1.0 - experts.part)

    def _multiply(self, rows: int, wanted: int) -> float:
        """Seconds of the products of a pass; the head is multiplied by the rows that sample alone."""
        on_host = self.passes.assigned(rows).nbytes
        products = sum(self.expectation.multiply(kind, self._multiplied(kind, rows) - on_host * (kind is Kind.LAYER),
                                                 wanted if kind is Kind.HEAD else rows) for kind in self._kinds(wanted))
        return products + self.expectation.multiply_on_host(on_host, rows)

    def _multiplied(self, kind: Kind, rows: int) -> float:
        experts, nbytes = self.passes.experts, self.passes.multiplied[kind]
        return nbytes if kind is not Kind.EXPERT or experts is None else nbytes * experts.touched(rows)

    def _kinds(self, wanted: int) -> tuple[Kind, ...]:
        experts = () if self.passes.experts is None else (Kind.EXPERT,)
        return (Kind.LAYER, *experts, Kind.HEAD) if wanted else (Kind.LAYER, *experts)


def most_tokens(columns: int) -> int:
    """The most tokens of a pass, whose activations have so many elements of 4 bytes a row."""
    return max(FEWEST, min(MOST, ACTIVATIONS // (4 * columns)))
