"""How does a model come into service under a budget? Files in, a runner out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from nvdma.arena import Arena
from nvdma.errors import DmaError, GpuError
from nvdma.select import Selection, probe
from nvdma.types import NVME_HOST, BackendFacts, Source
from nvstream.v1.models_pb2 import Placement
from nvstreamd.engine.budget import GroupSize, Shares, Sizes, check_free
from nvstreamd.engine.claimed import ClaimedDrives, samples
from nvstreamd.engine.describe import ModelFile
from nvstreamd.engine.expectation import Expectation, Measured
from nvstreamd.engine.kv_cache import GroupPages, KvCache
from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.measure import BLOCK, compute_rates, host_rates, link_rate, read_rate
from nvstreamd.engine.on_card import describe
from nvstreamd.engine.pacing import ByCost, PassBytes, most_tokens
from nvstreamd.engine.planning import assignable, divide_memory, plan_of, with_assignments
from nvstreamd.engine.runner import Runner
from nvstreamd.errors import BudgetTooSmall, KernelError, NvstreamError, StorageError
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.kv_memory import page_bytes
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.kernels.select import ANY_CARD, CARD, CardWishes, Kernels, choose
from nvstreamd.memory import tightest
from nvstreamd.program import Expert, Model, columns_by_id
from nvstreamd.trace import Trace
from nvstreamd.weights.flow.embedding import EmbeddingRows
from nvstreamd.weights.flow.flow import Flow
from nvstreamd.weights.flow.mover import Mover
from nvstreamd.weights.flow.plan import Plan, Share, minimum_budget
from nvstreamd.weights.flow.pools import Pool, Slot

log = logging.getLogger(__name__)

DEPTH = 16
NOTHING = Share(frozenset(), 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Wishes:
    """A load's wishes: ceilings in bytes, backends and kernels in order of preference, compute threads.

    `memory` is for weights and KV cache together; 0 as `budget` or `kv_budget` leaves the division to us. `sequences`
    run at once. `drives` are those that the daemon claimed for it: then nothing else can read them.
    """

    memory: int
    budget: int
    kv_budget: int
    sequences: int
    backends: tuple[str, ...]
    kernels: tuple[str, ...]
    threads: int
    drives: ClaimedDrives = field(default_factory=lambda: ClaimedDrives((), ()))
    card: CardWishes = ANY_CARD


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in service."""

    runner: Runner
    flow: Flow
    plan: Plan
    expectation: Expectation
    selection: Selection
    shares: Shares
    pool: Pool
    notes: tuple[str, ...]
    trace: Trace | None
    pages: tuple[int, ...]

    def kv_cache(self) -> KvCache:
        """The pages of the KV cache, all of them free."""
        return KvCache([GroupPages(KvPages(count, PAGE_TOKENS), group.window)
                        for group, count in zip(self.runner.model.kv, self.pages, strict=True)])

    def pacing(self, latency: float | None, most: int) -> ByCost:
        """How many tokens of prompts passes take; `most` of 0 is for nobody having said."""
        room = most_tokens(columns_of(self.runner.model))
        return ByCost(self.expectation, PassBytes.of(self.flow.segments.values(), self.plan), latency,
                      min(most, room) if most else room)


def columns_of(model: Model) -> int:
    """Elements of activations that a row takes: values, and what experts make of their rows on the way."""
    programs = [program for stage in model.stages for program in stage.programs]
    halfway = [step.parts.columns // step.down.rows * (step.down.rows + step.down.columns)
               for program in programs for step in program.steps if isinstance(step, Expert)]
    return sum(columns_by_id(programs).values()) + max(halfway, default=0)


def sizes_of(model: ModelFile) -> Sizes:
    """The model's sizes, as its memory is divided by them."""
    constants = model.manifest.constants.nbytes
    segments = model.manifest.sizes
    return Sizes(model.data[0].path, sum(segments.values()) + constants, minimum_budget(segments, constants),
                 tuple(GroupSize.of(page_bytes(group), model.hyper.context, group.window)
                       for group in model.architecture.model.kv))


def load(model: ModelFile, wishes: Wishes, stack: ExitStack, trace: Trace | None = None) -> Loaded:
    """Opens the backend, measures, plans, reads what stays resident. `stack` undoes it. Raises NvstreamError."""
    return load_by(lambda wanted, own: choose(wanted, wishes.threads, own, card=wishes.card), model, wishes, stack,
                   trace)


def load_by(pick: Callable[[Sequence[str], ExitStack], Kernels], model: ModelFile, wishes: Wishes, stack: ExitStack,
            trace: Trace | None) -> Loaded:
    """The same, on the first kernels that `pick` finds among those wanted, and that the model has room for."""
    wanted: tuple[str, ...] = wishes.kernels
    given_up: tuple[str, ...] = ()
    while True:
        with ExitStack() as own:
            kernels = pick(wanted, own)
            try:
                loaded = load_on(replace(kernels, notes=(*given_up, *kernels.notes)), model, wishes, own, trace)
            except (GpuError, KernelError, BudgetTooSmall) as error:
                wanted = wanted[wanted.index(CARD) + 1 :] if kernels.device.own is not None else ()
                if not wanted:
                    raise error if isinstance(error, NvstreamError) else KernelError(error.what, error.hint) from error
                given_up = (f"{CARD} kernels given up: {error}",)
                log.warning("%s", given_up[0])
                continue
            except DmaError as error:
                raise StorageError(error.what, error.hint) from error
            stack.push(own.pop_all())
            return loaded


def load_on(kernels: Kernels, model: ModelFile, wishes: Wishes, stack: ExitStack, trace: Trace | None) -> Loaded:
    """The same, on kernels that were chosen. Raises NvstreamError, DmaError."""
    sizes, device = sizes_of(model), kernels.device
    shares = divide_memory(sizes, model, device, wishes.memory, wishes.budget, wishes.kv_budget, wishes.sequences,
                           BLOCK * DEPTH)
    if device.own is not None:
        device.own.open(shares.own.weights, stack)
    check_free(sizes, shares.host, tightest())
    arena = Arena(shares.host.weights, huge_pages=True)
    stack.enter_context(arena)
    if device.own is not None:
        device.own.pin(arena.address, arena.nbytes, stack)
    selection = _select(model, wishes, arena)
    stack.callback(selection.backend.close)
    rate = read_rate(selection.backend, model, _sources(model), arena)
    pool = Pool(arena)
    pool.open(stack)
    mover = Mover(selection.backend, model.data, min(BLOCK, selection.backend.facts.max_read), trace)
    constants = _open(device, model, shares.pages, mover, pool)
    measured = Measured(rate, link_rate(model, mover, pool, device.own) if device.own is not None else None,
                        compute_rates(model, mover, pool, device, experts_here=shares.experts_here))
    chosen = plan_of(model, shares, mover.block * mover.backend.facts.depth, measured)
    if device.host is not None and assignable(model.architecture.model, chosen):
        measured = replace(measured, host=host_rates(model, mover, pool, device))
        chosen = with_assignments(model.architecture.model, model.manifest, chosen, measured)
    flow = Flow(mover, pool, model.manifest.segments, chosen, device.own)
    flow.start(stack)
    embedding = EmbeddingRows(model.manifest.embedding, model.data)
    runner = Runner(model.architecture.model, model.manifest, flow, embedding, device, constants)
    notes = (*arena.notes, *kernels.notes, *wishes.drives.notes,
             *(() if device.own is None else describe(chosen, device.own, device.host)))
    return Loaded(runner, flow, chosen, Expectation(measured), selection, shares.host, pool, notes, trace,
                  shares.pages)


def _open(device: Device, model: ModelFile, pages: Sequence[int], mover: Mover, pool: Pool) -> Slot:
    """Gives the device what rests in memory in any case, and `pages` of each group of the KV cache."""
    constants, found = model.manifest.constants, model.architecture.model
    slot = pool.take(constants.nbytes)
    mover.fill(constants, slot)
    device.open(found, slot.span, constants.by_name, pages)
    return slot


def _sources(model: ModelFile) -> list[Source]:
    return [Source(file.fd, file.path, file.size) for file in model.data]


def _select(model: ModelFile, wishes: Wishes, arena: Arena) -> Selection:
    if not wishes.drives:
        return probe(wishes.backends, _sources(model), arena, DEPTH)
    made = wishes.drives.factories(model)
    return probe(wishes.backends, _sources(model), arena, DEPTH, factories=made, known=samples(model))


def placement_message(loaded: Loaded) -> Placement:
    """The plan, what it rests on, and what was refused, for status."""
    facts = loaded.selection.backend.facts
    # What is in host memory: behind a device's own, or that which the device multiplies.
    own = loaded.plan.tiers[-1] if loaded.flow.own is None or len(loaded.plan.tiers) > 1 else NOTHING
    on_card: dict[str, Any] = {}
    if loaded.flow.own is not None:
        first, on_host = loaded.plan.tiers[0], loaded.plan.assigned(1).nbytes
        experts = loaded.plan.near.memory if loaded.plan.near is not None else 0
        on_card = {"vram": loaded.flow.own.ceiling, "vram_resident_bytes": first.resting + experts,
                   "link_bytes_per_pass": first.moved - on_host,
                   "link_bytes_per_second": loaded.expectation.link or 0.0, "host_bytes_per_pass": on_host,
                   "host_bytes_per_second": loaded.expectation.host_rate if on_host else 0.0}
    notes = [f"{facts.name}: {_how(facts)}, {facts.depth} reads in flight", *facts.notes]
    notes += [f"{refusal.name} refused: {refusal.reason}" for refusal in loaded.selection.refused]
    notes += loaded.notes
    return Placement(
        budget=loaded.pool.arena.nbytes,
        resident_bytes=own.resting,
        slot_bytes=own.slots * own.slot_bytes,
        streamed_bytes_per_pass=loaded.plan.streamed_bytes,
        read_bytes_per_second=loaded.expectation.read.value,
        predicted_pass_seconds=loaded.plan.predicted_seconds,
        backend=facts.name,
        notes=notes,
        kernel=loaded.runner.device.name,
        arithmetic=loaded.runner.device.arithmetic,
        kv_budget=loaded.shares.kv,
        **on_card,
    )


def _how(facts: BackendFacts) -> str:
    """A line for status: how the model's bytes come, and into which memory."""
    if facts.name == NVME_HOST:
        return "queues of the drives' own, memory pinned for them"
    registered = "registered buffers" if facts.registered_buffers else "buffers not registered"
    return f"{'O_DIRECT' if facts.direct else 'page cache'}, {registered}"
