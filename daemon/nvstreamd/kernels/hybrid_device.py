"""How do a card and the processor run one pass together? Each multiplies the weights that lie in its memory.

The card keeps keys and values, the router and the scores; the processor multiplies what lies in host memory, while the
link brings other weights. Both compute what kernels/ARITHMETIC.md says: who multiplied changes no bit. Activations
cross only where one has what the other needs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nvdma.fence import DONE, Fence
from nvdma.memory import MemoryKind, Span
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints, Longs
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.device import Scores, Tensors, Visit
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.gpu_program import GpuProgram
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.kernels.split import Part, part, split
from nvstreamd.program import Expert, Mix, Model, Program, Route, Score, Value


@dataclass(slots=True, eq=False)
class _Ready:
    """A part for whoever runs it; of a card's, where the vectors that it needs are kept, and whether they are there."""

    part: Part
    program: Any
    kept: Span | None = None
    filled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class HybridProgram:
    """A program for the card alone, of which `whole` says what it reads and leaves; and in `parts` for both.

    There are none where it has to run on the card. `mixed` is what experts left, where it brings that together.
    """

    on_card: GpuProgram
    whole: Part
    parts: tuple[_Ready, ...]
    has_weights: bool
    mixed: Mix | None


class HostSide:
    """The processor beside a card, and the `seconds` that it has multiplied."""

    def __init__(self, processor: CpuDevice) -> None:
        self.name = processor.name
        self.seconds = 0.0


class HybridDevice:
    """A card, and the processor beside it. `open` comes first, then `prepare` and passes."""

    def __init__(self, card: GpuDevice, processor: CpuDevice) -> None:
        self.card = card
        self.processor = processor
        self.name = card.name
        self.arithmetic = card.arithmetic
        self.own = card.own
        self.resting = card.resting
        self.host = HostSide(processor)
        # By id: the values of which the card has the last word, and those of which the processor has.
        self._on_card: set[int] = set()
        self._on_host: set[int] = set()
        # Places of experts that the processor served, of which the card has served others.
        self._lacking: list[Longs] = []
        # The pass, until the processor has something to do in it.
        self._waiting: tuple[Rows, GgmlType, bytes | bytearray] | None = None

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Makes room on both; keys and values are on the card. Raises GpuOutOfMemory."""
        self._hidden = model.hidden
        self.card.open(model, constants, tensors, pages)
        self.processor.open(replace(model, kv=()), constants, tensors, ())

    def prepare(self, program: Program, tensors: Tensors) -> HybridProgram:
        """The program for the card, and in parts for both. Raises KernelError."""
        whole = part(program.steps, on_host=False)
        on_card = self.card.prepare(program, tensors)
        parts: list[_Ready] = []
        if not any(isinstance(step, Route | Mix | Score) for step in program.steps):
            parts = [self._part(each, tensors) for each in split(program)]
        mixed = next((step for step in program.steps if isinstance(step, Mix)), None)
        return HybridProgram(on_card, whole, tuple(parts), bool(tensors), mixed)

    def _part(self, of: Part, tensors: Tensors) -> _Ready:
        if of.on_host or isinstance(of.steps[0], Expert):
            return _Ready(of, self.processor.prepare(Program(of.steps), tensors))
        return _Ready(of, *self.card.prepare_part(Program(of.steps), tensors))

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """Begins a pass. Raises KernelError for pages that are not there."""
        self.card.begin(rows, kind, embedded)
        self._waiting = rows, kind, embedded
        self._on_card, self._on_host = {self._hidden.id}, set()
        self._lacking.clear()

    def run(self, ready: HybridProgram, weights: Span, number: int, after: Fence) -> Fence:
        """Runs a stage where its weights lie. Raises KernelError, GpuOutOfMemory."""
        if ready.mixed is not None:
            return self._mix(ready, ready.mixed, weights, number, after)
        if weights.memory.kind is MemoryKind.VRAM or not ready.has_weights:
            return self._run_on_card(ready.whole, ready.on_card, weights, number, after)
        if not ready.parts:
            raise KernelError("weights in host memory of what has to run on the card", "report this")
        done = after
        for each in ready.parts:
            if each.part.on_host:
                done = self._run_on_host(each, weights, number)
                continue
            assert each.kept is not None
            if not each.filled:
                self.card.keep(each.program, weights, each.kept)
                each.filled = True
            done = self._run_on_card(each.part, each.program, each.kept, number, done)
        return done

    def _mix(self, ready: HybridProgram, step: Mix, weights: Span, number: int, after: Fence) -> Fence:
        """Brings to the card what the processor's experts left, and mixes."""
        parts, columns = step.parts, step.x.columns
        if parts.id in self._on_card and self._lacking:
            places = np.concatenate(self._lacking)
            self.card.send_rows(parts, columns, places, self.processor.view(parts).reshape(-1, columns)[places])
        self._lacking.clear()
        done = self._run_on_card(ready.whole, ready.on_card, weights, number, after)
        # The next layer's are others.
        self._on_card.discard(parts.id)
        self._on_host.discard(parts.id)
        return done

    def _run_on_card(self, of: Part, program: GpuProgram, weights: Span, number: int, after: Fence) -> Fence:
        self._send(of.reads)
        done = self.card.run(program, weights, number, after)
        self._on_card |= of.writes
        self._on_host -= of.writes
        return done

    def _run_on_host(self, ready: _Ready, weights: Span, number: int) -> Fence:
        self._fetch(ready.part.reads)
        began = time.monotonic()
        done = self.processor.run(ready.program, weights, number, DONE)
        self._on_host |= ready.part.writes
        self._on_card -= ready.part.writes
        self.host.seconds += time.monotonic() - began
        return done

    def _fetch(self, values: Sequence[Value]) -> None:
        """Brings to the processor what it lacks."""
        if self._waiting is not None:
            rows, kind, embedded = self._waiting
            self.processor.begin(Rows([Stretch(0, rows.count, 0, ())], []), kind, embedded)
            self._waiting = None
        for value in values:
            if value.id not in self._on_host:
                self.card.fetch(value, self.processor.view(value))
                self._on_host.add(value.id)

    def _send(self, values: Sequence[Value]) -> None:
        """Brings to the card what the processor has last written."""
        for value in values:
            if value.id in self._on_host - self._on_card:
                self.card.send(value, 0, self.processor.view(value))
                self._on_card.add(value.id)

    def routing(self) -> Ints:
        """Waits; the experts of each row, by rank."""
        return self.card.routing()

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Runs experts where their weights lie: the card begins, and the processor multiplies meanwhile."""
        done = after
        near = [Visit(visit.ready.on_card, visit.weights, visit.places) for visit in visits
                if visit.weights.memory.kind is MemoryKind.VRAM]
        here = [visit for visit in visits if visit.weights.memory.kind is not MemoryKind.VRAM]
        if near:
            of = visits[0].ready.whole
            self._send(of.reads)
            done = self.card.experts(near, after)
            self._on_card |= of.writes
        if here:
            self._serve(here)
        return done

    def _serve(self, visits: Sequence[Visit]) -> None:
        of = visits[0].ready.whole
        self._fetch(of.reads)
        began = time.monotonic()
        self.processor.experts([Visit(visit.ready.parts[0].program, visit.weights, visit.places) for visit in visits],
                               DONE)
        self._on_host |= of.writes
        self._lacking += [visit.places for visit in visits]
        self.host.seconds += time.monotonic() - began

    def scores(self) -> Scores:
        """Waits for the pass."""
        found = self.card.scores()
        unsound = [found.unsound] if self._waiting is not None else [found.unsound, self.processor.scores().unsound]
        return replace(found, unsound=min((number for number in unsound if number is not None), default=None))

    def peek(self, value: Value) -> Floats:
        """Waits, and copies what a value holds in this pass."""
        return (self.card if value.id in self._on_card else self.processor).peek(value)
