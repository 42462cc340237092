"""Where do the activations of a pass lie in host memory? Buffers that grow to the widest pass, and their addresses."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from nvstreamd.kernels.arrays import Doubles, Floats, Ints
from nvstreamd.kernels.cpu_library import CpuContext
from nvstreamd.kernels.cpu_structs import CpuGroup, CpuPass, CpuStretch, address
from nvstreamd.kernels.kv_memory import make_kv, page_bytes
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Model, Value

FEWEST_ROWS = 16


class PassMemory:
    """Values, angles, keys and values of a model, and the struct CpuPass that tells the kernels of them."""

    def __init__(self, model: Model, constants: int, pages: Sequence[int]) -> None:
        self.model = model
        self.kv = [make_kv(group, count) for group, count in zip(model.kv, pages, strict=True)]
        self.scores: Floats = np.empty((0, model.vocabulary), np.float32)
        self._groups = (CpuGroup * len(self.kv))(*(
            CpuGroup(memory=kv.halves.ctypes.data, page_bytes=page_bytes(kv.group)) for kv in self.kv))
        self.over = CpuPass(groups=address(self._groups), vocabulary=model.vocabulary, width=model.hidden.columns,
                            constants=constants, unsound=-1)
        self._capacity = FEWEST_ROWS
        self._columns = {model.hidden.id: model.hidden.columns}
        self._turns: list[Doubles] = []
        self._magnitudes: list[float] = []
        self._buffers: dict[int, Floats] = {}
        self._angles: list[Floats] = []
        self._used = 0
        self._routing: Ints = np.empty(0, np.int32)
        # Arrays whose addresses the struct holds.
        self._lent: tuple[object, ...] = ()

    def make_room(self, columns: Mapping[int, int]) -> None:
        """From the next pass on there is room for values of so many columns, by id.

        What there is room for already may be asked for within a pass.
        """
        for value, most in columns.items():
            if most > self._columns.get(value, 0):
                self._columns[value] = most
                self._buffers.clear()

    def make_room_for_routing(self, used: int) -> None:
        """From the next pass on there is room for so many experts a row."""
        if used > self._used:
            self._used = used
            self._buffers.clear()

    def routing(self) -> Ints:
        """The experts of each row, [rows, used]; valid until the next Route."""
        return self._routing[: self.over.rows * self._used].reshape(-1, self._used)

    def turn_by(self, turns: Doubles, magnitude: float) -> int:
        """From the next pass on there are the angles of these frequencies; returns their number."""
        self._turns.append(turns)
        self._magnitudes.append(magnitude)
        self._buffers.clear()
        return len(self._turns) - 1

    def begin(self, rows: Rows, hidden: Floats, context: CpuContext) -> None:
        """Takes the rows of a pass and their hidden state. Raises KernelError for pages that are not there."""
        rows.check([kv.pages for kv in self.kv], hidden.shape[0])
        if rows.count > self._capacity or not self._buffers:
            self._allocate(rows.count)
        self._buffers[self.model.hidden.id][: rows.count] = hidden
        positions = rows.positions()
        for number, turns in enumerate(self._turns):
            cos, sin = self._angles[2 * number], self._angles[2 * number + 1]
            context.angles(turns.ctypes.data, turns.size, self._magnitudes[number], positions.ctypes.data, rows.count,
                           cos.ctypes.data, sin.ctypes.data)
        self.scores = np.empty((len(rows.wanted), self.model.vocabulary), np.float32)
        self._tell(rows)

    def _tell(self, rows: Rows) -> None:
        tables = [self._table(rows, number) for number in range(len(self.kv))]
        wanted = np.array(rows.wanted, np.int64)
        over = self.over
        over.rows, over.stretch_count, over.wanted_count = rows.count, len(rows.stretches), len(rows.wanted)
        over.wanted, over.scores = wanted.ctypes.data, self.scores.ctypes.data
        over.unsound = -1
        self._lent = (tables, wanted)

    def _table(self, rows: Rows, number: int) -> object:
        """Tells a group of the pages that the rows have there; what it was told of must live as long as the pass."""
        pages = array("q")
        stretches = (CpuStretch * len(rows.stretches))()
        for place, stretch in enumerate(rows.stretches):
            stretches[place] = CpuStretch(stretch.first, stretch.count, stretch.begin, len(pages))
            pages.extend(stretch.pages[number])
        self._groups[number].stretches = address(stretches)
        self._groups[number].pages = pages.buffer_info()[0]
        return stretches, pages

    def _allocate(self, rows: int) -> None:
        if rows > self._capacity:
            self._capacity = max(rows, 2 * self._capacity)
        self._buffers = {value: np.empty((self._capacity, most), np.float32) for value, most in self._columns.items()}
        self._angles = [np.empty((self._capacity, turns.size), np.float32) for turns in self._turns for _ in range(2)]
        addresses = [self._buffers[value].ctypes.data if value in self._buffers else 0
                     for value in range(max(self._buffers) + 1)]
        self._tables = np.array(addresses, np.uint64), np.array([a.ctypes.data for a in self._angles], np.uint64)
        self._routing = np.zeros(self._capacity * self._used, np.int32)
        self.over.routing = self._routing.ctypes.data
        self.over.values, self.over.angles = (table.ctypes.data for table in self._tables)

    def view(self, value: Value) -> Floats:
        """What a value holds, [rows, columns]; written to, it is what the next step reads."""
        flat = self._buffers[value.id].reshape(-1)[: self.over.rows * value.columns]
        return flat.reshape(-1, value.columns)
