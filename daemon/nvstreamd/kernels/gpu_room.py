"""What does a card keep from pass to pass? Values, angles, keys and values, and the facts of the pass at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nvdma.errors import GpuOutOfMemory
from nvdma.gpu.driver import Driver
from nvdma.gpu.event import EventFence, Events
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd.errors import KernelError
from nvstreamd.kernels.arrays import Doubles, Floats, Longs
from nvstreamd.kernels.device import Tensors, wait_for
from nvstreamd.kernels.gpu_launch import ROW_THREADS, Functions, Launch
from nvstreamd.kernels.gpu_pass import (
    FEWEST_ROWS,
    FLOAT,
    LONG,
    Buffers,
    Desk,
    Facts,
    Shape,
    Tiling,
    bucket,
    chunks_seen,
    facts_of,
    kv_bytes,
    queries,
    tile_size,
)
from nvstreamd.kernels.gpu_steps import Pass
from nvstreamd.kernels.gpu_structs import GpuRows
from nvstreamd.kernels.gpu_take import Taker
from nvstreamd.kernels.host_bytes import vector_of
from nvstreamd.kernels.rope import frequencies, magnitude
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Attend, Model, Rope, Route

# The widest heads that attention.h has room for, and blocks of threads in a direction but the first.
MOST_DIM, MOST_BLOCKS = 256, 65535
# Lists of whole numbers, as of places that experts serve, that may be on their way at once.
LISTS = 16
# Numbers of a list for each pair of a row and an expert, at most: a group of its own, and eight places.
LIST_NUMBERS = 3 + 8
# Room for what chunks found before they are joined; and blocks of threads from which a card is busy without.
PART_BYTES, BUSY_BLOCKS = 64 << 20, 256


class Room:
    """VRAM for a model's passes, with so many `pages` of each group. `open` comes first."""

    def __init__(self, driver: Driver, taker: Taker, model: Model, pages: Sequence[int], events: Events) -> None:
        self.driver = driver
        self.taker = taker
        self.stream = taker.stream
        self.events = events
        self.model = model
        self.pages = pages
        self.used = 0
        self.buffers = Buffers(driver)
        self._desk, self._hidden_desk = Desk(driver), Desk(driver)
        self._list_desks = [Desk(driver) for _ in range(LISTS)]
        self._lists_sent: list[EventFence | None] = [None] * LISTS
        self._turn = self._tables = 0
        self._facts = Facts(self.buffers, self._desk)
        self._columns = {model.hidden.id: model.hidden.columns}
        self._capacity = FEWEST_ROWS
        self._turns: dict[Rope, tuple[int, Doubles, float]] = {}
        self._factors: dict[str, Floats] = {}
        self._ratios: dict[tuple[int, int], int] = {}
        self.kv: list[int] = []
        self._sent: EventFence | None = None
        self._over: Pass | None = None
        self._shape: Shape | None = None

    def open(self) -> None:
        """Makes room for keys and values. Raises GpuOutOfMemory; `close` gives back what was had."""
        for number, (group, count) in enumerate(zip(self.model.kv, self.pages, strict=True)):
            nbytes = max(1, count * kv_bytes(group))  # a group may have no layers
            self.kv.append(self.buffers.at(f"keys and values {number}", nbytes))
            # Zeros, not garbage: what is masked away would still poison a sum if it were NaN.
            self.driver.fill(self.kv[-1], 0, nbytes, self.stream)

    def close(self) -> None:
        """Gives everything back."""
        self.buffers.close()
        for desk in (self._desk, self._hidden_desk, *self._list_desks):
            desk.close()

    def read_factors(self, constants: Span, tensors: Tensors) -> None:
        """Where the model's constants lie in host memory, until `prepare` has asked for what ropes are divided by."""
        self._constants = constants, tensors

    def make_room(self, columns: Mapping[int, int]) -> None:
        """From the next pass on there is room for values of so many columns, by id."""
        for value, most in columns.items():
            self._columns[value] = max(most, self._columns.get(value, 0))

    def route_by(self, step: Route) -> None:
        """From the next pass on there is room for the experts of this step's rows."""
        self.used = max(self.used, step.weights.columns)

    def attend_by(self, step: Attend) -> None:
        """From the next pass on rows are dealt to blocks for this step. Raises KernelError."""
        heads = step.heads
        if heads.dim > MOST_DIM or heads.keys > MOST_BLOCKS:
            raise KernelError(f"{heads.keys} heads of {heads.dim}: a card's kernels take {MOST_BLOCKS} of {MOST_DIM}",
                              "run the model on the processor")
        ratio = heads.queries // heads.keys
        self._ratios[step.group, ratio] = max(step.heads.keys, self._ratios.get((step.group, ratio), 0))

    def turn_by(self, rope: Rope) -> None:
        """From the next pass on there are the angles of this rope."""
        if rope in self._turns:
            return
        factors = None if rope.factors is None else vector_of(*self._constants, rope.factors, rope.dim // 2)
        turns = frequencies(rope, factors)
        address = self.buffers.at(f"frequencies {len(self._turns)}", turns.nbytes)
        self._desks_are_free()
        at, view = self._desk.bytes(turns.nbytes)
        view[:] = turns.tobytes()
        view.release()
        self.driver.copy(address, at, turns.nbytes, self.stream)
        wait_for(self.events.record(self.stream, "frequencies"))
        self._turns[rope] = address, turns, magnitude(rope)

    def begin(self, rows: Rows, hidden: Floats, functions: Functions) -> list[Launch]:
        """Takes the rows of a pass and their hidden state; what is to be launched first. Raises KernelError."""
        rows.check(self.pages, hidden.shape[0])
        most = max(rows.count, len(rows.wanted))
        if most > MOST_BLOCKS:
            raise KernelError(f"a pass of {most} rows: a card's kernels take {MOST_BLOCKS}", "report this")
        self._over, self._shape, before = None, None, self._capacity
        if most > self._capacity:
            self._capacity = max(most, 2 * self._capacity)
        self._desks_are_free()
        try:
            return self._take(rows, hidden, functions)
        except GpuOutOfMemory:
            self._capacity = before  # narrower passes are not to fail as well
            raise
        finally:
            self._sent = self.events.record(self.stream, "the rows of a pass")

    @property
    def over(self) -> Pass:
        """The pass at hand. Raises KernelError where there is none, or not all of it had room."""
        if self._over is None:
            raise KernelError("no pass has begun", "report this")
        return self._over

    def _desks_are_free(self) -> None:
        """Waits until nothing is under way from host memory: that it was may not have been waited for."""
        if self._sent is not None:
            wait_for(self._sent)

    def _take(self, rows: Rows, hidden: Floats, functions: Functions) -> list[Launch]:
        self._send_hidden(hidden)
        for name, content in facts_of(rows, len(self.model.kv), sorted({ratio for _, ratio in self._ratios})).items():
            self._facts.put(name, content)
        facts = self._facts.send(self.taker)
        capacity = self._capacity
        values = {value: self.buffers.at(f"value {value}", FLOAT * capacity * most)
                  for value, most in self._columns.items()}
        angles = {rope: (self.buffers.at(f"cos {number}", FLOAT * capacity * turns.size),
                         self.buffers.at(f"sin {number}", FLOAT * capacity * turns.size))
                  for number, (rope, (_, turns, _)) in enumerate(self._turns.items())}
        tilings = {key: self._tiling(rows, *key, facts) for key in self._ratios}
        parts = max((tiling.parts for tiling in tilings.values()), default=0)
        wanted = len(rows.wanted)
        self._stretches = len(rows.stretches)
        self._over = Pass(
            rows.count, wanted, capacity, self.model.hidden.columns, self.model.vocabulary, len(rows.stretches), values,
            facts, angles, tilings, self.buffers.at("scores", FLOAT * bucket(max(1, wanted)) * self.model.vocabulary),
            self.buffers.at("routing", FLOAT * capacity * max(1, self.used)),
            self.buffers.at("parts", bucket(max(1, parts))))
        return [self._turned(functions, rope, facts["positions"], *angles[rope]) for rope in self._turns]

    @property
    def shape(self) -> Shape:
        """What of the pass decides which work its stages are."""
        if self._shape is None or self._shape.generation != self.buffers.generation:
            tilings = tuple((tiling.size, tiling.tiles, tiling.chunks) for tiling in self.over.tilings.values())
            self._shape = Shape(self.over.rows, self.over.wanted, self._stretches, tilings, self.buffers.generation)
        return self._shape

    def _send_hidden(self, hidden: Floats) -> None:
        at, view = self._hidden_desk.bytes(hidden.nbytes)
        np.frombuffer(view, np.float32)[:] = hidden.reshape(-1)
        view.release()
        to = self.buffers.at(f"value {self.model.hidden.id}",
                             FLOAT * self._capacity * self._columns[self.model.hidden.id])
        self.taker.take(to, at, hidden.nbytes)

    def _turned(self, functions: Functions, rope: Rope, positions: int, cos: int, sin: int) -> Launch:
        address, turns, factor = self._turns[rope]
        call = GpuRows(x=positions, norm=address, out=cos, other=sin, columns=turns.size, epsilon=factor)
        return Launch(functions.of_rows("angles_of_rows"), (1, self.over.rows, 1), ROW_THREADS, 0, call)

    def _tiling(self, rows: Rows, group: int, ratio: int, facts: Mapping[str, int]) -> Tiling:
        size = tile_size(rows, ratio)
        tiles = len(queries(rows, ratio, size))
        if tiles > MOST_BLOCKS:
            raise KernelError(f"{rows.count} rows, {ratio} heads to a key: too many for the kernels", "report this")
        keys, dim = self._ratios[group, ratio], self.model.kv[group].dim
        chunks = bucket(max(chunks_seen(stretch.begin, stretch.count, self.model.kv[group].window)
                            for stretch in rows.stretches))
        part = keys * tiles * chunks * size * (dim + 2) * FLOAT
        if chunks == 1 or keys * tiles >= BUSY_BLOCKS or part > PART_BYTES:
            chunks = part = 0
        return Tiling(size, tiles, chunks, facts[f"tiles {ratio}"], part)

    def keep(self, nbytes: int) -> Span:
        """A part of VRAM, for as long as the room is open."""
        self._tables += 1
        address = self.buffers.at(f"table {self._tables}", nbytes)
        return Span(Memory(MemoryKind.VRAM, address, nbytes), 0, nbytes)

    def table(self, addresses: Sequence[int]) -> int:
        """A table of addresses in VRAM, for as long as the room is open."""
        self._tables += 1
        content = np.array(addresses, np.int64).tobytes()
        to = self.buffers.at(f"table {self._tables}", len(content))
        self._desks_are_free()
        at, view = self._desk.bytes(len(content))
        view[:] = content
        view.release()
        self.driver.copy(to, at, len(content), self.stream)
        wait_for(self.events.record(self.stream, "a table"))
        return to

    def send_list(self, numbers: Longs) -> int:
        """Whole numbers, in VRAM until the next are sent; their address."""
        turn, self._turn = self._turn, (self._turn + 1) % LISTS
        sent = self._lists_sent[turn]
        if sent is not None:
            wait_for(sent)
        # At one address: graphs hold it. What is sent waits for all work before.
        most = max(bucket(numbers.nbytes), LIST_NUMBERS * LONG * self._capacity * max(1, self.used))
        to, (at, view) = self.buffers.at("lists", most), self._list_desks[turn].bytes(numbers.nbytes)
        with view:
            np.frombuffer(view, np.int64)[:] = numbers
        self.taker.take(to, at, numbers.nbytes)
        self._lists_sent[turn] = self.events.record(self.stream, "lists for experts")
        return to
