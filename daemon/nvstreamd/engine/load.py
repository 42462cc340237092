"""How does a model come into service under a budget? Files in, a runner out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.bandwidth import Extent as RawExtent
from nvdma.bandwidth import measure
from nvdma.errors import DmaError
from nvdma.select import Selection, probe
from nvdma.types import NVME_HOST, BackendFacts, Source
from nvstream.v1.models_pb2 import Placement
from nvstreamd.architectures.decoder import decoder_layer, inverse_frequencies, rope_angles
from nvstreamd.engine.claimed import ClaimedDrives, samples
from nvstreamd.engine.describe import ModelFile
from nvstreamd.engine.kv_store import bytes_per_token, heads_of, make_cache
from nvstreamd.engine.runner import Runner
from nvstreamd.engine.segment_view import SegmentView
from nvstreamd.errors import MEMORY, BudgetTooSmall, NotEnoughMemory, StorageError
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Span
from nvstreamd.kernels.kernel_set import KernelSet
from nvstreamd.kernels.select import choose
from nvstreamd.memory import Bound, tightest
from nvstreamd.weights.embedding import EmbeddingRows
from nvstreamd.weights.manifest import ALIGNMENT, Segment
from nvstreamd.weights.placement import Plan, Rates, apart, check_budget, mib, minimum_budget, plan
from nvstreamd.weights.slots import Slots
from nvstreamd.weights.streamer import Streamer

BLOCK = 1 << 20
DEPTH = 16
MEASURE_SECONDS = 0.3
WARM_UP = 4
MEASURE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a load asks for: ceilings in bytes, backends and kernels in order of preference, compute threads.

    `drives` are those that the daemon claimed for it: then nothing else can read them.
    """

    budget: int
    kv_budget: int
    backends: tuple[str, ...]
    kernels: tuple[str, ...]
    threads: int
    drives: ClaimedDrives = field(default_factory=lambda: ClaimedDrives((), ()))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in service."""

    runner: Runner
    streamer: Streamer
    plan: Plan
    rates: Rates
    selection: Selection
    kv_pages: int
    slots: Slots
    notes: tuple[str, ...]


def sizes_of(model: ModelFile) -> list[int]:
    """Bytes in a slot of each segment of a pass."""
    return [segment.nbytes for segment in model.manifest.passes_over]


def arena_size(model: ModelFile, budget: int) -> int:
    """Bytes of weights that will be in memory at most. Raises BudgetTooSmall with the smallest workable figure."""
    sizes, constants = sizes_of(model), model.manifest.constants.nbytes
    check_budget(model.data[0].path, budget, minimum_budget(sizes, constants))
    return min(budget // ALIGNMENT * ALIGNMENT, sum(sizes) + constants)


def kv_page_count(model: ModelFile, kv_budget: int) -> int:
    """Pages of KV cache that the budget holds. Raises BudgetTooSmall when not even one."""
    page = PAGE_TOKENS * bytes_per_token(model.hyper)
    if kv_budget < page:
        given, least = apart(kv_budget, page)
        raise BudgetTooSmall(f"a KV budget of {given} is too small", f"one page of {PAGE_TOKENS} tokens takes {least}",
                             field="kv_budget")
    most = -(-model.hyper.context // PAGE_TOKENS) * 64
    return min(kv_budget // page, most)


def check_memory(model: ModelFile, weights: int, kv: int, bound: Bound | None) -> None:
    """Raises NotEnoughMemory when `weights` and `kv`, in bytes, are more than `bound` has free: we would be killed."""
    if bound is None or weights + kv <= bound.free:
        return
    least = minimum_budget(sizes_of(model), model.manifest.constants.nbytes)
    room = (bound.free - kv) // ALIGNMENT * ALIGNMENT
    hint = (f"a budget of at most {mib(room)} fits" if room >= least else
            f"the least that works is a budget of {mib(least)} and a kv_budget of one page: free some memory")
    raise NotEnoughMemory(f"{model.data[0].path}: {mib(weights)} of weights and {mib(kv)} of KV cache are more than "
                          f"the {mib(bound.free)} that {bound.name} has left of {mib(bound.limit)}", hint, field=MEMORY)


def load(model: ModelFile, wishes: Wishes, stack: ExitStack) -> Loaded:
    """Opens the backend, measures, plans, reads what stays resident. `stack` undoes it. Raises NvstreamError."""
    pages = kv_page_count(model, wishes.kv_budget)
    kernels = choose(wishes.kernels, wishes.threads, stack)
    weights = arena_size(model, wishes.budget)
    check_memory(model, weights, pages * PAGE_TOKENS * bytes_per_token(model.hyper), tightest())
    arena = Arena(weights, huge_pages=True)
    try:
        stack.enter_context(arena)
        selection = _select(model, wishes, arena)
        stack.callback(selection.backend.close)
        read = read_rate(selection.backend, model, arena)
        block = min(BLOCK, selection.backend.facts.max_read)
        compute = compute_rate(selection.backend, model, arena, kernels.ops, block)
    except DmaError as error:
        raise StorageError(error.what, error.hint) from error
    rates = Rates(read, compute)
    in_flight = block * selection.backend.facts.depth
    chosen = plan(sizes_of(model), model.manifest.constants.nbytes, arena.nbytes, in_flight, rates)
    slots = Slots(arena)
    slots.open(stack)
    streamer = Streamer(selection.backend, slots, model.data, model.manifest.passes_over, chosen, block)
    constants = slots.resident(model.manifest.constants.nbytes)
    streamer.fill_now(model.manifest.constants, constants)
    streamer.start(stack)
    embedding = EmbeddingRows(model.manifest.embedding, model.data)
    cache = make_cache(model.hyper, pages)
    runner = Runner(model.hyper, model.manifest, streamer, embedding, cache, kernels.ops, constants)
    stack.callback(runner.forget_views)
    notes = (*arena.notes, *kernels.notes, *wishes.drives.notes)
    return Loaded(runner, streamer, chosen, rates, selection, pages, slots, notes)


def _sources(model: ModelFile) -> list[Source]:
    return [Source(file.fd, file.path, file.size) for file in model.data]


def _select(model: ModelFile, wishes: Wishes, arena: Arena) -> Selection:
    if not wishes.drives:
        return probe(wishes.backends, _sources(model), arena, DEPTH)
    made = wishes.drives.factories(model)
    return probe(wishes.backends, _sources(model), arena, DEPTH, factories=made, known=samples(model))


def read_rate(backend: Backend, model: ModelFile, arena: Arena) -> float:
    """Bytes a second of the backend alone over the segments of a pass."""
    sources = _sources(model)
    extents = [RawExtent(e.file, e.offset, e.length) for s in model.manifest.passes_over for e in s.extents]
    depth = max(1, min(backend.facts.depth, arena.nbytes // BLOCK))
    block = min(BLOCK, backend.facts.max_read, arena.nbytes // depth // ALIGNMENT * ALIGNMENT)
    found = measure(backend, sources, arena, block, depth, seconds=MEASURE_SECONDS, limit=MEASURE_BYTES,
                    extents=extents)
    return found.bytes_per_second


def compute_rate(backend: Backend, model: ModelFile, arena: Arena, ops: KernelSet, block: int) -> float:
    """Weight bytes a second that a pass of one tile multiplies from memory: one layer and one head piece, timed."""
    with ExitStack() as stack:
        slots = Slots(arena)
        slots.open(stack)
        region = slots.resident(max(sizes_of(model)))
        filler = Streamer(backend, slots, model.data, (), Plan(0, frozenset(), 0, 0, 0, 0, 0.0), block)
        seconds = 0.0
        for segment, steps in ((model.manifest.layers[0], len(model.manifest.layers)),
                               (model.manifest.head[0], len(model.manifest.head))):
            filler.fill_now(segment, region)
            seconds += steps * _time_segment(model, segment, SegmentView(segment, region.data), ops)
        return sum(sizes_of(model)) / seconds


def _time_segment(model: ModelFile, segment: Segment, view: SegmentView, ops: KernelSet) -> float:
    hyper = replace(model.hyper, layers=1)
    x = np.ones((ops.row_tile, hyper.width), np.float32)
    logits = np.empty((ops.row_tile, max(tensor.shape[0] for tensor in segment.tensors)), np.float32)
    angles = rope_angles(inverse_frequencies(hyper, None), np.zeros(ops.row_tile, np.int64))
    attention = ops.attention(heads_of(hyper), make_cache(hyper, 1), Batch([Span(0, 1, 0, [0])], *angles))

    def once() -> None:
        if segment in model.manifest.head:
            ops.linear(x, view.matrix(segment.tensors[0].name.removesuffix(".weight")), logits)
        else:
            decoder_layer(hyper, ops, view, x.copy(), attention, 0)

    return median_seconds(once, 5)


def median_seconds(work: Callable[[], None], times: int) -> float:
    """The median duration of `work`, warmed up: caches, clocks and a library's own choices settle over a few calls."""
    for _ in range(WARM_UP):
        work()
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def placement_message(loaded: Loaded) -> Placement:
    """The plan, what it rests on, and what was refused, for status."""
    facts = loaded.selection.backend.facts
    notes = [f"{facts.name}: {_how(facts)}, {facts.depth} reads in flight", *facts.notes]
    notes += [f"{refusal.name} refused: {refusal.reason}" for refusal in loaded.selection.refused]
    notes += loaded.notes
    return Placement(
        budget=loaded.plan.budget,
        resident_bytes=loaded.plan.resident_bytes,
        slot_bytes=loaded.plan.slots * loaded.plan.slot_bytes,
        streamed_bytes_per_pass=loaded.plan.streamed_bytes,
        read_bytes_per_second=loaded.rates.read,
        predicted_pass_seconds=loaded.plan.predicted_seconds,
        backend=facts.name,
        notes=notes,
        kernel=loaded.runner.ops.name,
    )


def _how(facts: BackendFacts) -> str:
    """By which means its bytes come, and into what."""
    if facts.name == NVME_HOST:
        return "queues of the drives' own, memory pinned for them"
    registered = "registered buffers" if facts.registered_buffers else "buffers not registered"
    return f"{'O_DIRECT' if facts.direct else 'page cache'}, {registered}"
