"""What does a card do, with the processor beside it, when nothing is computed? It takes its time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvdma.fence import Fence
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints
from nvstreamd.kernels.device import ARITHMETIC, Scores, Tensors, Visit
from nvstreamd.kernels.gpu_form import Form
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Model, Program, Score, Value
from support.boxes.box import Box
from support.boxes.clock import Channel, Clock, Ended, Work
from support.boxes.routes import Routes

# A stage is begun by one graph; activations cross the link; the host wakes up from a wait.
LAUNCH, CROSSING = 5e-6, 20e-6


@dataclass(frozen=True, slots=True)
class Prepared:
    """Bytes of the weights of a program, and whether it is the head."""

    nbytes: int
    is_head: bool


@dataclass(slots=True)
class Served:
    """What experts took in a pass: `host_bytes` by the processor, and the `seconds` of layers, of which each takes as
    long as whoever of both has more to do."""

    host_bytes: float = 0.0
    seconds: float = 0.0
    on_card: float = 0.0
    on_host: float = 0.0

    def layer_ends(self) -> None:
        """The experts of a layer have been served."""
        self.seconds += max(self.on_card, self.on_host)
        self.on_card = self.on_host = 0.0


class SimulatedMemory:
    """A card's own: bytes are counted, and brought over the link."""

    def __init__(self, box: Box, clock: Clock) -> None:
        self.ceiling = box.vram
        self.link = Channel(clock, box.link)
        self._memory = Memory(MemoryKind.VRAM, 0, box.vram)
        self._taken = 0
        self._left = 0

    def pin(self, address: int, nbytes: int, stack: ExitStack) -> None:
        """Nothing to do."""

    def form(self, tensors: Tensors) -> Form:
        """As on a card."""
        return Form.of(tensors)

    def open(self, nbytes: int, stack: ExitStack) -> None:
        """Sets so much aside."""
        assert nbytes <= self.ceiling
        self._left = nbytes

    def take(self, nbytes: int) -> Span:
        """A part of it."""
        assert self._taken + nbytes <= self._left, "more VRAM is taken than there is"
        span = Span(self._memory, self._taken, nbytes)
        self._taken += nbytes
        return span

    def give_back(self, span: Span) -> None:
        """Takes back the part that was taken last."""
        self._taken -= span.nbytes

    def bring(self, tensors: Tensors, raw: Span, to: Span) -> Fence:
        """Moves as many bytes as the file has of it."""
        fence = Ended(self.link.clock)
        self.link.put(Form.of(tensors).raw_bytes, fence.end)
        return fence


class HostSeconds:
    """What the processor has multiplied beside the card."""

    name = "simulated processor"
    seconds = 0.0


class SimulatedDevice:
    """A card of a box, and the processor beside it. `changed` is called when a part of the card's work has ended."""

    name, arithmetic = "simulated card", ARITHMETIC

    def __init__(self, box: Box, clock: Clock, routes: Routes | None) -> None:
        self.box = box
        self.clock = clock
        self.own = SimulatedMemory(box, clock)
        self.host = HostSeconds()
        self.routes = routes
        self.resting = self
        self.changed = lambda: None
        self.rows = self.wanted = self.number = 0
        self.served = Served()
        self.chained = False
        # When the card has done all that it was given.
        self._free = 0.0

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Nothing to do."""

    def prepare(self, program: Program, tensors: Tensors) -> Prepared:
        """How many bytes it multiplies."""
        nbytes = Form.of(tensors).raw_bytes if tensors else 0
        return Prepared(nbytes, any(isinstance(step, Score) for step in program.steps))

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """A pass over so many rows."""
        self.rows, self.wanted = rows.count, len(rows.wanted)
        self.served = Served()

    def run(self, ready: Prepared, weights: Span, number: int, after: Fence) -> Fence:
        """Takes as long as the weights' bytes need, where they lie."""
        self.number = number
        self.served.layer_ends()
        rows = self.wanted if ready.is_head else self.rows
        if weights.memory.kind is MemoryKind.VRAM or not ready.nbytes:
            return self._on_card(ready.nbytes / self.box.card(rows))
        self._on_host(ready.nbytes, self.box.host(rows))
        return self._on_card(0.0)

    def _on_card(self, seconds: float) -> Fence:
        fence = Ended(self.clock)
        # A chain is begun when the pass is.
        self._free = max(self._free, self.clock.now) + seconds + (0.0 if self.chained else LAUNCH)

        def end() -> None:
            fence.end()
            self.changed()

        self.clock.at(self._free, end)
        return fence

    def _settle(self, seconds: float) -> None:
        """Waits for the card, and so long."""
        waited = Ended(self.clock)
        self.clock.at(max(self._free, self.clock.now) + seconds, waited.end)
        waited.wait(0.0)

    def _on_host(self, nbytes: float, rate: float) -> None:
        began = self.clock.now
        self._settle(CROSSING)
        done = Ended(self.clock)
        self.clock.begin(Work(nbytes, rate, done.end))
        done.wait(0.0)
        self._free = max(self._free, self.clock.now) + CROSSING
        self.host.seconds += self.clock.now - began

    def routing(self) -> Ints:
        """Waits for the card; then as the routes of the box say."""
        self._settle(CROSSING)
        assert self.routes is not None
        return self.routes.drawn(self.number, self.rows)

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Each where its weights lie, both at once."""
        near = [visit for visit in visits if visit.weights.memory.kind is MemoryKind.VRAM]
        here = [visit for visit in visits if visit.weights.memory.kind is not MemoryKind.VRAM]
        done: Fence = after
        if near:
            seconds = sum(visit.ready.nbytes / self.box.card(len(visit.places)) for visit in near)
            self.served.on_card += seconds
            done = self._on_card(seconds)
        if here:
            self._serve(here)
        return done

    def _serve(self, visits: Sequence[Visit]) -> None:
        seconds = sum(visit.ready.nbytes / self.box.host(len(visit.places)) for visit in visits)
        nbytes = sum(visit.ready.nbytes for visit in visits)
        self.served.on_host += seconds
        self.served.host_bytes += nbytes
        began, done = self.clock.now, Ended(self.clock)
        self.clock.begin(Work(nbytes, nbytes / seconds, done.end))
        done.wait(0.0)
        self.host.seconds += self.clock.now - began

    def chain(self) -> None:
        """All of a pass is begun at once from here on."""
        self.chained = True

    def prepare_all(self, program: Program, tensors: Sequence[Tensors], weights: Sequence[Span]) -> tuple[int, int]:
        """How many experts there are, and the bytes of each."""
        return len(tensors), Form.of(tensors[0]).raw_bytes

    def run_all(self, experts: Any, after: Fence) -> Fence:
        """As many as its rows are sent to."""
        assert self.routes is not None
        count, nbytes = experts
        wanted, visits = np.unique(self.routes.drawn(self.number, self.rows), return_counts=True)
        assert count >= len(wanted)
        seconds = sum(nbytes / self.box.card(int(rows)) for rows in visits)
        self.served.on_card += seconds
        return self._on_card(seconds)

    def scores(self) -> Scores:
        """Waits for the card; they are nothing."""
        self._settle(CROSSING)
        return Scores(np.zeros((self.wanted, 1), np.float32), None)

    def peek(self, value: Value) -> Floats:
        """Nothing was computed: zeros."""
        return np.zeros((self.rows, value.columns), np.float32)
