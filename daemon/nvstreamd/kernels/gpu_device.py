"""How does a card compute a model's programs? Launches put into one stream; nothing waits but for routes and scores.

What a pass is made of is begun as graphs, stage by stage or all at once (gpu_graphs). Bits are kernels/ARITHMETIC.md's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby

import numpy as np

from nvdma.fence import Fence
from nvdma.gpu.driver import Driver
from nvdma.gpu.event import EventFence, Events
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints, Longs
from nvstreamd.kernels.check import check, tensors_of
from nvstreamd.kernels.device import ARITHMETIC, Scores, Tensors, Visit, hidden_of, wait_for
from nvstreamd.kernels.gpu_exchange import Exchange
from nvstreamd.kernels.gpu_experts import (
    all_experts,
    check_alike,
    deal,
    expert_launches,
    grouped_experts,
    in_groups,
)
from nvstreamd.kernels.gpu_form import Form
from nvstreamd.kernels.gpu_graphs import WIDEST_GRAPH, Chain, Graphs, Part
from nvstreamd.kernels.gpu_launch import Functions, Launch
from nvstreamd.kernels.gpu_memory import GpuMemory
from nvstreamd.kernels.gpu_pass import FLOAT, LONG, SOUND, bucket
from nvstreamd.kernels.gpu_program import GpuExperts, GpuProgram
from nvstreamd.kernels.gpu_room import Room
from nvstreamd.kernels.gpu_steps import Steps, Weights
from nvstreamd.kernels.gpu_take import Taker
from nvstreamd.kernels.gpu_units import Compiler
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Add, Attend, Expert, Model, Program, Route, Score, Value, columns_by_id

# Fences that nobody has to ask for before there are more: stages of a pass, and what is brought meanwhile.
EVENTS = 256


class GpuDevice:
    """A card. `open` comes first, then `prepare` and passes; `stack` gives back what they took.

    `ceiling` bytes of VRAM are for weights, keys and values at most; 0 for all that is free.
    """

    arithmetic = ARITHMETIC
    host = None

    def __init__(self, driver: Driver, compiler: Compiler, stack: ExitStack, ceiling: int = 0) -> None:
        card = driver.card()
        slower = "" if card.reads_host else "; cannot read host memory: what a pass sends waits behind weights"
        self.name = f"{card.name}, compute capability {card.capability / 10}, {card.driver}{slower}"
        self.driver, self.stack = driver, stack
        self.stream = driver.stream()
        self.functions = Functions(driver, compiler)
        self.events = Events(driver, EVENTS)
        self.own = GpuMemory(driver, self.functions, ceiling)
        self.resting = self
        stack.callback(self.own.close)
        self.exchange = Exchange(driver, Taker(driver, self.functions, self.stream), self.stream, self.events)
        stack.callback(self.exchange.close)
        self.graphs = Graphs(driver, self.stream)
        self._chained = False
        self._chain: Chain | None = None
        self._room: Room | None = None
        stack.callback(self._close_room)

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Makes room for keys and values, and brings the model's constants into VRAM. Raises GpuOutOfMemory.

        Where it raises, the device is not open.
        """
        self._close_room()
        self._chained = False
        self._model, self._tensors = model, tensors
        self._constants = Form.of(tensors)
        room = Room(self.driver, self.exchange.taker, model, pages, self.events)
        try:
            room.open()
            address = room.buffers.at("constants", self._constants.nbytes)
            to = Span(Memory(MemoryKind.VRAM, address, self._constants.nbytes), 0, self._constants.nbytes)
            wait_for(self.own.bring(tensors, constants, to))
        except BaseException:
            room.close()
            raise
        room.read_factors(constants, tensors)
        self._steps = Steps(self.functions, room.buffers, model.kv, room.kv)
        self._constants_address = address
        self._room = room

    def prepare(self, program: Program, tensors: Tensors) -> GpuProgram:
        """The program's steps. Raises KernelError."""
        check(program, self._model, tensors, self._tensors)
        self._make_room(program)
        return GpuProgram(program.steps, Form.of(tensors))

    def prepare_part(self, program: Program, tensors: Tensors) -> tuple[GpuProgram, Span]:
        """The same for a part of a stage whose weights lie in host memory, of which it needs but vectors.

        They have room in VRAM for good, which is for `keep` to fill.
        """
        check(program, self._model, tensors, self._tensors)
        self._make_room(program)
        names = [name for step in program.steps for name, _ in tensors_of(step) if name in tensors]
        form = Form.of({name: tensors[name] for name in names})
        if any(placed.packed for placed in form.tensors.values()):
            raise KernelError("a part of a stage has matrices", "report this")
        return GpuProgram(program.steps, form, looks=False), self.room.keep(form.nbytes)

    def keep(self, ready: GpuProgram, raw: Span, to: Span) -> None:
        """Begins to copy the vectors of a part from where its stage's weights lie in host memory."""
        for placed in ready.form.tensors.values():
            self.driver.copy(to.address + placed.offset, raw.address + placed.raw_offset, placed.raw_bytes, self.stream)

    def _make_room(self, program: Program) -> None:
        room = self.room
        for step in program.steps:
            if isinstance(step, Attend):
                room.turn_by(step.rope)
                room.attend_by(step)
            if isinstance(step, Route):
                room.route_by(step)
        room.make_room(columns_by_id([program]))

    @property
    def room(self) -> Room:
        """What was made at `open`."""
        if self._room is None:
            raise KernelError("the device is not open", "report this")
        return self._room

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """Begins a pass. Raises KernelError for pages that are not there."""
        # What was noted of a pass that somebody gave up is of no use.
        self._chain = None
        hidden = hidden_of(self._model, kind, embedded)
        for launch in self.room.begin(rows, hidden, self.functions):
            launch.begin(self.driver, self.stream)

    def run(self, ready: GpuProgram, weights: Span, number: int, after: Fence) -> Fence:
        """Begins a stage. Raises KernelError, GpuOutOfMemory."""
        return self._begin((ready, weights.address, number), after, f"stage {number}",
                           lambda: self._launches(ready, weights.address, number))

    def _begin(self, what: tuple[object, ...], after: Fence, name: str, make: Callable[[], list[Launch]]) -> Fence:
        """Begins what `make` makes for the shape of this pass; or notes it, for all of the pass to begin at once."""
        part = Part(what, make)
        if self._chained and self.room.over.rows <= WIDEST_GRAPH:
            if self._chain is None or self._chain.begun:
                self._chain = Chain(lambda parts: self._begin_all(parts, "a pass"))
            self._chain.add(part)
            return self._chain
        self._after(after)
        return self._begin_all([part], name)

    def _begin_all(self, parts: Sequence[Part], name: str) -> Fence:
        self.graphs.begin(parts, self.room)
        return self.events.record(self.stream, name)

    def chain(self) -> None:
        """From here on all weights rest but experts': parts of a pass are begun at once, as far as nobody waits."""
        self._chained = True

    def _settle(self) -> None:
        """Begins what was noted: something else comes into the stream, or somebody waits."""
        if self._chain is not None:
            self._chain.go()

    def _launches(self, ready: GpuProgram, address: int, number: int) -> list[Launch]:
        of = self.room.over
        weights = Weights(ready.form.tensors, address, self._constants.tensors, self._constants_address)
        found = [launch for step in ready.steps for launch in self._steps.launches(step, weights, of)]
        last = ready.steps[-1]
        if not ready.looks:
            return found
        if isinstance(last, Add | Score):
            # What a product writes last is looked at while it is written.
            if isinstance(last, Add) or of.wanted:
                found[-1].call.unsound, found[-1].call.number = of.facts["unsound"], number
            return found
        hidden = self._model.hidden
        return [*found, self._steps.look(of.values[hidden.id], hidden.columns, hidden.columns, of.rows, number, of)]

    def _after(self, fence: Fence) -> None:
        """What comes into the stream begins after the fence. Nobody waits for the card's own."""
        self._settle()
        if isinstance(fence, Chain):
            fence = fence.go()
        if not isinstance(fence, EventFence):
            wait_for(fence)
        else:
            fence.hold(self.stream)

    def _read(self, address: int, *shape: int) -> Floats:
        """A copy of 4-byte elements in VRAM, when all work before has ended."""
        self._settle()
        found = np.empty(shape, np.float32)
        self.exchange.fetch(address, found)
        return found

    def routing(self) -> Ints:
        """Waits; the experts of each row, by rank."""
        found: Ints = self._read(self.room.over.routing, self.room.over.rows, self.room.used).view(np.int32)
        return found

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Begins experts: those that lie alike at once. Raises KernelError, GpuOutOfMemory."""
        self._after(after)
        for ready, alike in groupby([visit for visit in visits if visit.places.size], key=lambda visit: visit.ready):
            (step,) = ready.steps
            assert isinstance(step, Expert)
            found = list(alike)
            if in_groups(step, ready.form.tensors):
                self._run_groups(step, ready, found)
                continue
            for launch in self._one_by_one(step, ready, found):
                launch.begin(self.driver, self.stream)
        return self.events.record(self.stream, "experts")

    def _run_groups(self, step: Expert, ready: GpuProgram, visits: Sequence[Visit]) -> None:
        of = deal([(visit.weights.address, visit.places) for visit in visits], self.room.send_list)
        self.graphs.begin([Part((ready, of), lambda: grouped_experts(
            self._steps, step, ready.form.tensors, of, self.room.over))], self.room)

    def _one_by_one(self, step: Expert, ready: GpuProgram, visits: Sequence[Visit]) -> list[Launch]:
        found: list[Launch] = []
        at = self.room.send_list(np.concatenate([visit.places for visit in visits]))
        for visit in visits:
            weights = Weights(ready.form.tensors, visit.weights.address, self._constants.tensors,
                              self._constants_address)
            found += expert_launches(self._steps, step, weights, self.room.over, at, visit.places.size)
            at += LONG * visit.places.size
        return found

    def prepare_all(self, program: Program, tensors: Sequence[Tensors], weights: Sequence[Span]) -> GpuExperts:
        """All experts of a layer, which rest in VRAM for good: `tensors` of each in its segment, `weights` in VRAM.

        Raises KernelError where they do not lie alike.
        """
        (step,) = program.steps
        assert isinstance(step, Expert)
        for each in tensors:
            check(program, self._model, each, self._tensors)
        forms = [Form.of(each).tensors for each in tensors]
        check_alike(step, forms)
        self.room.make_room(columns_by_id([program]))
        return GpuExperts(step, forms[0], self.room.table([span.address for span in weights]), len(weights))

    def run_all(self, experts: GpuExperts, after: Fence) -> Fence:
        """Begins all experts over the rows that the last Route sent to them; nobody waits to know which."""
        return self._begin((experts,), after, "experts", lambda: all_experts(
            self._steps, experts.step, experts.form, experts.table, experts.count, self.room.over))

    def scores(self) -> Scores:
        """Waits for the pass."""
        self._settle()
        of, found = self.room.over, np.empty(1, np.float32)
        values = np.empty((of.wanted, of.vocabulary), np.float32)
        self.exchange.fetch_all([(of.scores, values), (of.facts["unsound"], found)])
        unsound = int(found.view(np.int32)[0])
        return Scores(values, None if unsound == SOUND else unsound)

    def fetch(self, value: Value, into: Floats) -> None:
        """Waits, and fills `into` [rows, columns] with what a value holds in this pass."""
        self._settle()
        self.exchange.fetch(self.room.over.values[value.id], into)

    def send_rows(self, value: Value, columns: int, places: Longs, content: Floats) -> None:
        """Begins to write rows [places, columns] over those of what a value holds, seen as rows of `columns`."""
        self._settle()
        room = self.room
        source = room.buffers.at("rows of the processor's", bucket(content.nbytes))
        self.exchange.send(source, content)
        self._steps.scatter(source, room.send_list(places), places.size, room.over.values[value.id], columns).begin(
            self.driver, self.stream)

    def send(self, value: Value, first: int, content: Floats) -> None:
        """Begins to write `content` over what a value holds in this pass, from element `first` on."""
        self._settle()
        self.exchange.send(self.room.over.values[value.id] + FLOAT * first, content)

    def peek(self, value: Value) -> Floats:
        """Waits, and copies what a value holds in this pass."""
        return self._read(self.room.over.values[value.id], self.room.over.rows, value.columns)

    def _close_room(self) -> None:
        self._chain = None
        self.graphs.drop()
        if self._room is not None:
            self._room.close()
        self._room = None
