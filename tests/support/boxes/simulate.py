"""How long do passes take in a box, by the engine's own plan, flow, runner and scheduler, and how long at best?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

from nvstreamd.engine.cost import PassCost
from nvstreamd.engine.describe import ModelFile, read_model
from nvstreamd.engine.expectation import Expectation, Measured
from nvstreamd.engine.kv_cache import GroupPages, KvCache
from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.load import DEPTH, columns_of, sizes_of
from nvstreamd.engine.measure import BLOCK
from nvstreamd.engine.pacing import ByCost, PassBytes, most_tokens
from nvstreamd.engine.planning import MemoryShares, assignable, divide_memory, plan_of, with_assignments
from nvstreamd.engine.request import Request
from nvstreamd.engine.runner import Runner
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.pieces import Kind
from nvstreamd.weights.flow.embedding import EmbeddingRows
from nvstreamd.weights.flow.flow import Flow
from nvstreamd.weights.flow.plan import Plan
from nvstreamd.weights.packed.files import open_all
from support.boxes.bound import Pass, least_seconds
from support.boxes.box import Box
from support.boxes.clock import Clock, Turns
from support.boxes.device import SimulatedDevice
from support.boxes.mover import CountedPool, SimulatedMover
from support.boxes.routes import Routes

# Each user sends a prompt and then gets tokens, as many as the last of them needs for so many passes with all of them,
# of which the first are not counted.
PROMPT, TOKENS, PASSES, WARM = 64, 448, 24, 8
IN_FLIGHT = BLOCK * DEPTH


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians over passes in which everybody decodes: seconds, those of the bound, and what the engine expected."""

    users: int
    seconds: float
    bound: float
    predicted: float
    prompt_seconds: float
    plan: Plan

    @property
    def tokens_per_second(self) -> float:
        """Of all users together."""
        return self.users / self.seconds

    @property
    def over_bound(self) -> float:
        """How many times as long as the bound a pass takes."""
        return self.seconds / self.bound


def measured_in(box: Box, model: ModelFile, *, experts_here: bool) -> Measured:
    """What an engine would measure at load in the box."""
    card = {rows: box.card(rows) for rows in (1, PAGE_TOKENS)}
    experts = {rows: box.host(rows) for rows in (1, PAGE_TOKENS)} if experts_here else card
    many = model.hyper.experts // max(1, model.hyper.experts_used)
    by_pass = {1: experts[1], PAGE_TOKENS * max(1, many): experts[PAGE_TOKENS]}
    return Measured(box.drive, box.link, {Kind.LAYER: card, Kind.HEAD: card, Kind.EXPERT: by_pass})


class Simulation:
    """A model in service in a box, for so many users at once."""

    def __init__(self, box: Box, path: Path, users: int, stack: ExitStack) -> None:
        self.box, self.users = box, users
        self.model = read_model(open_all([path], stack))
        hyper, self.clock = self.model.hyper, Clock(box.memory)
        routes = Routes(hyper.experts, hyper.experts_used) if hyper.experts else None
        self.device = SimulatedDevice(box, self.clock, routes)
        self.mover = SimulatedMover(box, self.clock)
        self.device.changed = self.mover.decide
        self.shares = self._divided()
        self.plan = self._planned()
        pool = CountedPool(self.shares.host.weights)
        self.device.own.open(self.shares.own.weights, stack)
        constants = pool.take(self.model.manifest.constants.nbytes)
        self.flow = Flow(self.mover, pool, self.model.manifest.segments, self.plan, self.device.own,
                         Turns(self.clock, self.mover.decide))
        self.flow.start(stack)
        embedding = EmbeddingRows(self.model.manifest.embedding, self.model.data)
        self.runner = Runner(self.model.architecture.model, self.model.manifest, self.flow, embedding, self.device,
                             constants)
        self.expectation = Expectation(self.measured)
        self.scheduler = self._scheduler()

    def _divided(self) -> MemoryShares:
        sizes = sizes_of(self.model)
        tokens = -(-(PROMPT + TOKENS) // PAGE_TOKENS) * PAGE_TOKENS
        kv = sum(group.page for group in sizes.groups) * (tokens // PAGE_TOKENS) * self.users
        return divide_memory(sizes, self.model, self.device, self.box.ram, 0, kv, self.users, IN_FLIGHT)

    def _planned(self) -> Plan:
        self.measured = measured_in(self.box, self.model, experts_here=self.shares.experts_here)
        found = plan_of(self.model, self.shares, IN_FLIGHT, self.measured)
        if not assignable(self.model.architecture.model, found):
            return found
        self.measured = replace(self.measured, host=self.box.at_once)
        return with_assignments(self.model.architecture.model, self.model.manifest, found, self.measured)

    def _scheduler(self) -> Scheduler:
        model, segments = self.model.architecture.model, self.model.manifest.segments
        cache = KvCache([GroupPages(KvPages(count, PAGE_TOKENS), group.window)
                         for group, count in zip(model.kv, self.shares.pages, strict=True)])
        pacing = ByCost(self.expectation, PassBytes.of(segments, self.plan), None, most_tokens(columns_of(model)))
        return Scheduler(cache, self.users, pacing)

    def run(self) -> Outcome:
        """Every user sends a prompt and gets tokens."""
        for user in range(self.users):
            self.scheduler.add(_request(user))
        passes: list[tuple[float, float, float]] = []
        began, prompts_ended = self.clock.now, 0.0
        while len(passes) < PASSES:
            work = self.scheduler.next_pass()
            begins = self.clock.now
            computed = self.runner.run(work)
            seconds = self.clock.now - begins
            cost, decodes = computed.cost, all(item.count == 1 and item.samples for item in work)
            self.scheduler.computed(work, seconds, cost.waits)
            if decodes and len(work) == self.users:
                prompts_ended = prompts_ended or begins
                bound = least_seconds(self.box, self._pass(work, cost))
                passes.append((seconds, bound, self.expectation.expected(cost)))
            self.expectation.saw(cost, decode=decodes)
            for item in work:
                if item.samples and item.request in self.scheduler.running:
                    self._answer(item.request)
        counted = passes[WARM:]
        seconds, bound, predicted = (median(each[part] for each in counted) for part in range(3))
        return Outcome(self.users, seconds, bound, predicted, prompts_ended - began, self.plan)

    def _answer(self, request: Request) -> None:
        request.tokens.append(1)
        if len(request.tokens) >= request.limit:
            self.scheduler.remove(request)

    def _pass(self, work: Sequence[Work], cost: PassCost) -> Pass:
        """What of the model a pass needed, wherever it lies."""
        sizes = self.model.manifest.sizes
        dense = sum(size for key, size in sizes.items() if key.kind is not Kind.EXPERT)
        resting = self.plan.tiers[0].rests if self.plan.tiers else frozenset()
        own = sum(sizes[key] for key in resting if key.kind is not Kind.EXPERT)
        served = self.device.served
        return Pass(len(work), dense, own, served.seconds, served.host_bytes, cost.missed_bytes)


def _request(user: int) -> Request:
    unused: Any = None
    return Request(user, 1000 + user, [2 + user] * PROMPT, PROMPT, PROMPT + TOKENS, TOKENS, unused, cast(Any, None),
                   speculates=False)


def simulate(box: Box, path: Path, users: int) -> Outcome:
    """One model, in one box, for so many users at once."""
    with ExitStack() as stack:
        return Simulation(box, path, users, stack).run()
