"""How many bytes a second does a backend read from these files?

The raw figure, nothing done with the bytes: the benchmark reports it, the placement planner decides with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.types import Read, Source

WAIT_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SourceRange:
    """``length`` bytes at ``offset`` of source number ``source``."""

    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """``nbytes`` bytes of files were read in ``seconds``."""

    nbytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The quotient; 0 when nothing was read."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


def measure(
    backend: Backend,
    sources: Sequence[Source],
    arena: Arena,
    block: int,
    depth: int,
    *,
    seconds: float | None = None,
    limit: int | None = None,
    ranges: Sequence[SourceRange] | None = None,
) -> Bandwidth:
    """Read ``ranges`` (all sources by default) in order, ``block`` bytes a read, ``depth`` reads in flight.

    Stops submitting after ``seconds`` or ``limit`` bytes, or at the end of the ranges, and waits for what is
    in flight. ``backend`` is open and idle; the first ``depth * block`` bytes of the arena are overwritten.
    Raises ValueError when block or depth do not fit arena and backend, and what `Backend.wait` raises.
    """
    _check(backend, arena, block, depth)
    chosen = _whole(sources) if ranges is None else ranges
    free = list(range(depth))  # slots of the arena; the tag of a read is its slot
    reads = _reads(chosen, block, backend.facts.alignment, limit, free)
    nbytes = 0
    start = time.perf_counter()
    while True:
        if seconds is None or time.perf_counter() - start < seconds:
            backend.submit(list(islice(reads, len(free))))
        if not backend.in_flight:
            return Bandwidth(nbytes, time.perf_counter() - start)
        for tag, done in backend.wait(WAIT_TIMEOUT_SECONDS):
            nbytes += done
            free.append(tag)


def _check(backend: Backend, arena: Arena, block: int, depth: int) -> None:
    facts = backend.facts
    if not 0 < depth <= facts.depth:
        raise ValueError(f"depth is {depth}: backend {facts.name} takes 1 to {facts.depth} reads in flight")
    if not 0 < block <= facts.max_read or block % facts.alignment:
        raise ValueError(
            f"block is {block}: backend {facts.name} reads 1 to {facts.max_read} bytes, "
            f"a multiple of {facts.alignment}"
        )
    if depth * block > arena.nbytes:
        raise ValueError(f"depth {depth} x block {block} do not fit an arena of {arena.nbytes} bytes")


def _whole(sources: Sequence[Source]) -> list[SourceRange]:
    return [SourceRange(number, 0, source.size) for number, source in enumerate(sources)]


def _reads(
    ranges: Sequence[SourceRange], block: int, alignment: int, limit: int | None, free: list[int]
) -> Iterator[Read]:
    """Blocks of ``ranges`` in order, each into a slot taken from ``free``.

    The last of a range is cut at its end, rounded up to ``alignment``.
    """
    given = 0
    for each in ranges:
        end = -(-(each.offset + each.length) // alignment) * alignment
        for offset in range(each.offset, end, block):
            if limit is not None and given >= limit:
                return
            length = block if block < end - offset else end - offset
            given += length
            slot = free.pop()
            yield Read(slot, each.source, offset, length, slot * block)
