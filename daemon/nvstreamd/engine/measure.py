"""How fast do a model's bytes come, and how fast are they multiplied? Measured alone, before anybody is served."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle

import numpy as np

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.bandwidth import SourceRange, measure
from nvdma.fence import DONE, Fence
from nvdma.memory import Span
from nvdma.types import Source
from nvstreamd.engine.describe import ModelFile
from nvstreamd.errors import KernelError
from nvstreamd.kernels.device import Device, OwnMemory, Visit
from nvstreamd.kernels.rows import PAGE_TOKENS, Rows, Stretch
from nvstreamd.pieces import Kind
from nvstreamd.program import Experts
from nvstreamd.weights.flow.assignment import HostRates
from nvstreamd.weights.flow.mover import WAIT_SECONDS, Mover
from nvstreamd.weights.flow.pools import Pool, Slot
from nvstreamd.weights.packed.manifest import ALIGNMENT, Segment, align_up

BLOCK = 1 << 20
MEASURE_SECONDS = 0.3
MEASURE_BYTES = 1 << 30
WARM_UP, TIMES = 4, 5
# Segments that are brought while one is waited for: as in passes, the link does not wait for whoever asks.
IN_A_ROW = 4
# What takes longer settles by itself, and is not worth waiting for.
LONG_SECONDS = 0.2
ROWS = (1, PAGE_TOKENS)
# A processor beside a card is worth less, the more rows there are: with each there is more to multiply a byte.
HOST_ROWS = (1, 2, 4, 8, 16, PAGE_TOKENS)
# Segments that are multiplied while others are brought, about as many as that.
AT_ONCE = 6


def read_rate(backend: Backend, model: ModelFile, sources: Sequence[Source], arena: Arena) -> float:
    """Bytes a second of the backend alone over the segments of a pass."""
    ranges = [SourceRange(e.file, e.offset, e.length) for s in model.manifest.segments for e in s.extents]
    depth = max(1, min(backend.facts.depth, arena.nbytes // BLOCK))
    block = min(BLOCK, backend.facts.max_read, arena.nbytes // depth // ALIGNMENT * ALIGNMENT)
    found = measure(backend, sources, arena, block, depth, seconds=MEASURE_SECONDS, limit=MEASURE_BYTES,
                    ranges=ranges)
    return found.bytes_per_second


def compute_rates(model: ModelFile, mover: Mover, pool: Pool, device: Device, *, experts_here: bool = False
                  ) -> dict[Kind, dict[int, float]]:
    """Weight bytes a second that passes multiply from memory, by kind and rows: one segment of each, timed.

    One row is what decoding is made of; more say what a prompt's tokens cost. Experts are multiplied in the device's
    own memory, or, with `experts_here`, by the processor beside it. Raises KernelError when the device does not end.
    """
    segments = {segment.key: segment for segment in model.manifest.segments}
    rates: dict[Kind, dict[int, float]] = {}
    with pool.borrowed(max(segment.nbytes for segment in segments.values())) as slot:
        for stage in model.architecture.model.stages:
            if stage.key.kind not in rates:
                segment = segments[stage.key]
                mover.fill(segment, slot)
                ready = device.prepare(stage.program, segment.by_name)
                with _in_place(device.own, segment, slot) as span:
                    rates[stage.key.kind] = {
                        rows: segment.nbytes / _seconds(model, device, rows, partial(device.run, ready, span, 0, DONE))
                        for rows in ROWS}
            if stage.experts is not None and Kind.EXPERT not in rates:
                segment = segments[stage.experts.keys[0]]
                mover.fill(segment, slot)
                with _in_place(None if experts_here else device.own, segment, slot) as span:
                    rates[Kind.EXPERT] = _expert_rates(model, device, stage.experts, segment, span)
    return rates


@contextmanager
def _in_place(own: OwnMemory | None, segment: Segment, slot: Slot) -> Iterator[Span]:
    """Where a segment that was read into a slot may be multiplied: there, or in the device's own memory for a while."""
    if own is None:
        yield slot.span
        return
    span = own.take(own.form(segment.by_name).nbytes)
    try:
        _wait("the link", own.bring(segment.by_name, slot.span, span))
        yield span
    finally:
        own.give_back(span)


def link_rate(model: ModelFile, mover: Mover, pool: Pool, own: OwnMemory) -> float:
    """Bytes a second that come into a device's own memory, in its form: the largest segment, one behind the other."""
    segment = max(model.manifest.segments, key=lambda each: each.nbytes)
    with pool.borrowed(segment.nbytes) as slot:
        span = own.take(own.form(segment.by_name).nbytes)

        def bring() -> None:
            for fence in [own.bring(segment.by_name, slot.span, span) for _ in range(IN_A_ROW)]:
                _wait("the link", fence)

        try:
            return IN_A_ROW * segment.nbytes / median_seconds(bring)
        finally:
            own.give_back(span)


def host_rates(model: ModelFile, mover: Mover, pool: Pool, device: Device) -> HostRates:
    """Of a layer: bytes a second that the processor multiplies beside a card, by rows, while the link is busy, too."""
    own = device.own
    assert own is not None
    segments = {segment.key: segment for segment in model.manifest.segments}
    stage = next(stage for stage in model.architecture.model.stages
                 if stage.key.kind is Kind.LAYER and stage.experts is None)
    segment = segments[stage.key]
    products: dict[int, float] = {}
    links: dict[int, float] = {}
    ready = device.prepare(stage.program, segment.by_name)
    with ExitStack() as stack:
        slots = _apart(segment, mover, pool, stack)
        span = own.take(own.form(segment.by_name).nbytes)
        stack.callback(own.give_back, span)
        turns = cycle(slots)

        def multiply() -> Fence:
            return device.run(ready, next(turns).span, 0, DONE)

        def bring() -> Fence:
            return own.bring(segment.by_name, next(turns).span, span)

        for rows in HOST_ROWS:
            _begin(model, device, rows)
            products[rows], links[rows] = (each * segment.nbytes for each in _at_once(multiply, bring))
    return HostRates(products, links)


def _apart(segment: Segment, mover: Mover, pool: Pool, stack: ExitStack) -> list[Slot]:
    """The segment, so often in memory, as far as there is room, that no cache of the processor's has all of it."""
    slots = [stack.enter_context(pool.borrowed(segment.nbytes))
             for _ in range(max(1, min(AT_ONCE, pool.room // align_up(segment.nbytes))))]
    for slot in slots:
        mover.fill(segment, slot)
    return slots


def _at_once(multiply: Callable[[], Fence], bring: Callable[[], Fence]) -> tuple[float, float]:
    """How often a second both can be done, one behind the other each, while the other is done, too."""
    alone = min(_seconds_of(lambda: _wait("the processor", multiply())) for _ in range(2))
    link = _seconds_of(lambda: _wait("the link", bring()))
    under_way = [bring() for _ in range(max(2, round(AT_ONCE * alone / link)))]
    began, times = time.perf_counter(), 0
    while not times or not under_way[-1].done():
        _wait("the processor", multiply())
        times += 1
    took = time.perf_counter() - began
    for fence in under_way:
        _wait("the link", fence)
    return times / took, len(under_way) / (time.perf_counter() - began)


def _expert_rates(model: ModelFile, device: Device, experts: Experts, segment: Segment, span: Span) -> dict[int, float]:
    """As many experts as serve a row, each with one row and with more: by the rows of passes that bring so many."""
    device.prepare(experts.mix, {})
    ready = device.prepare(experts.program, segment.by_name)
    rates: dict[int, float] = {}
    for rows in ROWS:
        visits = [Visit(ready, span, np.arange(rows, dtype=np.int64) * experts.used + rank)
                  for rank in range(experts.used)]
        seconds = _seconds(model, device, rows, partial(device.experts, visits, DONE))
        rates[1 if rows == 1 else rows * len(experts.keys) // experts.used] = experts.used * segment.nbytes / seconds
    return rates


def _seconds(model: ModelFile, device: Device, rows: int, run: Callable[[], Fence]) -> float:
    _begin(model, device, rows)
    return median_seconds(lambda: _wait(device.name, run()))


def _begin(model: ModelFile, device: Device, rows: int) -> None:
    """Begins a pass over the first tokens of a sequence."""
    table = model.manifest.embedding
    pages = [[0]] * len(model.architecture.model.kv)
    device.begin(Rows([Stretch(0, rows, 0, pages)], list(range(rows))), table.type,
                 bytes(rows * table.type.row_bytes(table.columns)))


def _wait(what: str, done: Fence) -> None:
    if not done.wait(WAIT_SECONDS):
        raise KernelError(f"{what}: waited {WAIT_SECONDS:.0f} s for {done}", "look at the card's log")


def median_seconds(work: Callable[[], object]) -> float:
    """The median duration of `work`, warmed up: caches, clocks and a library's own choices settle over a few calls.

    Of what takes long, the second of two calls.
    """
    for warm in range(WARM_UP):
        if _seconds_of(work) > LONG_SECONDS and warm:
            return _seconds_of(work)
    return statistics.median(_seconds_of(work) for _ in range(TIMES))


def _seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
