"""How are both sides of bench.experts started and asked? Each is a process; where memory is short, in a cgroup.

Where it is short a round begins with two processes: the file's pages are dropped from the page cache, a side loads in a
group of its own and is asked, it ends, and the other does the same. What a load leaves in memory is its own affair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import peers
from bench.company import QUIET, Company
from bench.experts_ours import Ids, write_ids
from bench.memory_group import MemoryGroup, drop_cached, memory_group
from bench.peers import Peer, PeerError

MIB = 1 << 20
# For programs, as in bench.engine.
EXTRA = 200 * MIB
OURS = "ours"
RESIDENT_KV, SHORT_KV = 256 * MIB, 64 * MIB


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer, and the share of the processors that others had meanwhile."""

    answer: dict[str, Any]
    others: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return float(self.answer["tokens"]) / float(self.answer["seconds"])


@dataclass(slots=True)
class Samples:
    """Tokens a second and the share of others, one entry a round; rounds thrown away; what else ours answered."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    retaken: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return median(self.ours) / median(self.theirs)


@dataclass(frozen=True, slots=True)
class Bench:
    """The file that both sides compute, their threads, and where what they are asked lies."""

    path: Path
    threads: int
    scratch: Path

    @property
    def short(self) -> int:
        """Bytes of weights in memory where it is short: half the file."""
        return self.path.stat().st_size // 2

    def ids(self, ids: Ids) -> Path:
        """A file with these token ids, until the next are written."""
        path = self.scratch / "ids"
        write_ids(path, ids)
        return path

    @contextmanager
    def ours(self, weights: int, kv: int) -> Iterator[tuple[Peer, dict[str, Any]]]:
        """Our engine, and what it says of itself."""
        command = [sys.executable, "-m", "bench.experts_ours", str(self.path), str(self.threads), str(weights), str(kv)]
        with peers.asked(command, OURS) as found:
            yield found, found.answer()

    @contextmanager
    def short_group(self, side: str) -> Iterator[MemoryGroup]:
        """A group of half the file, the KV cache and what programs take; nothing of the file is cached before."""
        drop_cached(self.path)
        with memory_group(side, self.short + SHORT_KV + EXTRA) as group:
            try:
                yield group
            except PeerError as error:
                what = str(error).removeprefix(f"{error.name} ")
                raise PeerError(error.name, f"{what}; {group.kills()} of its processes killed for memory") from error

    @contextmanager
    def ours_short(self) -> Iterator[tuple[Peer, dict[str, Any], MemoryGroup]]:
        """Our engine with memory short."""
        with self.short_group(OURS) as group, ExitStack() as stack:
            with group.entered():
                side, facts = stack.enter_context(self.ours(self.short, SHORT_KV))
            yield side, facts, group

    @contextmanager
    def theirs_short(self) -> Iterator[tuple[Peer, MemoryGroup]]:
        """llama.cpp with memory short, the file mapped."""
        with self.short_group("theirs") as group, ExitStack() as stack:
            with group.entered():
                side = stack.enter_context(peers.peer(self.path, self.threads, mapped=True))
            yield side, group


def ask(side: Peer, command: str) -> Asked:
    """Asks a side that runs already: ended processes of ours would count as others."""
    company = Company()
    answer = side.ask(command)
    return Asked(answer, company.share())


def rounds_of(count: int, one: Callable[[int], tuple[Asked, Asked]]) -> Samples:
    """So many rounds of (ours, theirs); what others disturbed is taken again, at most `count` times."""
    samples = Samples()
    while len(samples.ours) < count:
        ours, theirs = one(len(samples.ours) + samples.retaken)
        others = max(ours.others, theirs.others)
        if others > QUIET and samples.retaken < count:
            samples.retaken += 1
            continue
        samples.ours.append(ours.rate)
        samples.theirs.append(theirs.rate)
        samples.others.append(others)
        samples.answers.append(ours.answer)
    return samples
