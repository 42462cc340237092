"""Which kernel multiplies how many rows, and over how many blocks of threads? Launches as data.

Widths where one kernel takes over from another are measured (bench-gpu, part kernels), bits are the same with any.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Structure
from dataclasses import dataclass

from nvdma.gpu.driver import Driver
from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.gpu_form import PIECE_BYTES, TILE, up
from nvstreamd.kernels.gpu_structs import MOST_MATRICES, GpuMatrix, GpuProducts
from nvstreamd.kernels.gpu_units import OF_ROWS, Compiler, Unit, of_type

WARP, ROW_THREADS, ROW_WARPS, EIGHT = 32, 256, 8, 8
# Of weights that are floats: rows of activations that a block takes, strands of a sum.
FLOAT_ROWS, FLOAT_STRANDS = 4, 16
REPACK_QUADS = 8
# A row that is staged in the block's memory must fit without asking for more than every card gives.
STAGED_BYTES = 48 << 10
STAGES = "prepare_rows"
# Types whose blocks, or halves of blocks, have minimums: the sums of as many parts of activations are wanted.
SUMS = {"Q4_1": 1, "Q5_1": 1, "Q4_K": 1, "Q5_K": 1, "Q2_K": 2}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel and its one parameter."""

    function: int
    blocks: tuple[int, int, int]
    threads: int
    block_memory: int
    call: Structure

    def begin(self, driver: Driver, stream: int) -> None:
        """Puts it into a stream."""
        driver.launch(self.function, self.blocks, self.threads, self.block_memory, bytes(self.call), stream)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A wide kernel: a block's tiles of weights and of 8 rows of activations, its warps, its stages."""

    name: str
    tiles: int
    eights: int
    warps: int
    stages: int

    def memory(self, kind: GgmlType) -> int:
        """Bytes of the block's memory, for a type of weights."""
        scales = 128 * (1 + SUMS.get(kind.name, 0))
        return self.stages * (self.tiles * PIECE_BYTES[kind] + self.eights * (1024 + scales))


@dataclass(frozen=True, slots=True)
class Relay:
    """A narrow kernel for so many rows: quads a turn, tiles of 8 rows, bytes that it wants of one tile's quad."""

    rows: int
    quads: int
    eights: int
    operand: int

    def memory(self, kind: GgmlType, warps: int) -> int:
        """Bytes of the block's memory, for a type of weights."""
        x = self.operand + 128 * (1 + SUMS.get(kind.name, 0))
        return warps * STAGES_BY[warps] * self.quads * (PIECE_BYTES[kind] + self.eights * x)


# By warps of a block.
STAGES_BY = {1: 3, 2: 4, 4: 3}
NARROW = (Relay(1, 2, 1, 128), Relay(8, 2, 1, 1024), Relay(16, 1, 2, 1024))
# Tiles from which on there are enough blocks with a warp each.
MANY_TILES = 800
# By rows of activations up to which they are taken, the best first for matrices of many tiles; of few, the last.
WIDE = {
    32: (Rectangle("wide_64x32", 4, 4, 4, 4), Rectangle("wide_32x32", 2, 4, 4, 4)),
    64: (Rectangle("wide_64x64", 4, 8, 4, 4), Rectangle("wide_32x64", 2, 8, 4, 4)),
    1 << 30: (Rectangle("wide_128x128", 8, 16, 4, 3), Rectangle("wide_64x128", 4, 16, 4, 3)),
}
NARROWEST_WIDE, WIDE_TO = 17, (32, 64)
# Rows of a group at most, and how many there may be of each on average.
GROUPS = {1: 1, 8: 8, 32: 40, 128: 1 << 30}
GROUPED = (WIDE[32][0], WIDE[1 << 30][1])
# Of the widest rectangle a multiprocessor holds two: where its blocks fill none, or the last turn badly, smaller ones
# are better. Of the others one is enough.
HELD, FULL = 2, 0.9


class Functions:
    """The kernels of a card, loaded when they are first wanted."""

    def __init__(self, driver: Driver, compiler: Compiler) -> None:
        self.driver = driver
        self.compiler = compiler
        card = driver.card()
        self.block_memory, self.multiprocessors = card.block_memory, card.multiprocessors
        self._modules: dict[str, int] = {}
        self._found: dict[tuple[str, str], int] = {}
        # The thread that brings weights asks, too.
        self._lock = threading.Lock()

    def of_rows(self, name: str) -> int:
        """A kernel that needs no type of weights. Raises KernelError, GpuFailed."""
        # What a kernel may have of a block's memory is said once, before it is known how wide rows are.
        return self._function(OF_ROWS, name, STAGED_BYTES if name == STAGES else 0)

    def of_type(self, kind: GgmlType, name: str, block_memory: int = 0) -> int:
        """A kernel of a type of weights. Raises KernelError, GpuFailed."""
        return self._function(of_type(kind), name, block_memory)

    def _function(self, unit: Unit, name: str, block_memory: int) -> int:
        key = unit.name, name
        with self._lock:
            if unit.name not in self._modules:
                self._modules[unit.name] = self.driver.load(self.compiler.compile(unit))
            if key not in self._found:
                self._found[key] = self.driver.function(self._modules[unit.name], name, block_memory)
            return self._found[key]


def products(functions: Functions, kind: GgmlType, call: GpuProducts, matrices: Sequence[GpuMatrix]) -> Launch:
    """Up to three matrices of one type, times the rows of `call`."""
    assert 0 < len(matrices) <= MOST_MATRICES
    for number, matrix in enumerate(matrices):
        call.matrix[number] = matrix
    call.one = 1
    rows = call.rows
    tiles = sum(matrix.tiles for matrix in matrices)
    if kind not in PIECE_BYTES:
        name, each = ("products_by_four", 4) if call.columns % FLOAT_STRANDS == 0 else ("products_by_one", 1)
        blocks, threads = (tiles, up(rows, FLOAT_ROWS), 1), TILE * FLOAT_STRANDS // each
        return Launch(functions.of_rows(name), blocks, threads, 0, call)
    if rows >= NARROWEST_WIDE:
        shape = _rectangle(functions, kind, rows, matrices)
        memory = shape.memory(kind)
        blocks = sum(up(matrix.tiles, shape.tiles) for matrix in matrices), up(call.x.eights, shape.eights), 1
        return Launch(functions.of_type(kind, shape.name, memory), blocks, shape.warps * WARP, memory, call)
    return _relay(functions, kind, call, tiles, 1)


def products_of_pairs(functions: Functions, kind: GgmlType, call: GpuProducts, matrices: Sequence[GpuMatrix],
                      pairs: int) -> Launch:
    """The same matrices of many experts, each times one row: `call.choices` says whose weights each pair wants."""
    for number, matrix in enumerate(matrices):
        call.matrix[number] = matrix
    call.one = call.rows = 1
    return _relay(functions, kind, call, sum(matrix.tiles for matrix in matrices), pairs)


def products_of_groups(functions: Functions, kind: GgmlType, call: GpuProducts, matrices: Sequence[GpuMatrix],
                       groups: int, size: int) -> Launch:
    """The same of groups of `size` rows at most, which is one of GROUPS."""
    for number, matrix in enumerate(matrices):
        call.matrix[number] = matrix
    call.one, call.rows = 1, size
    if size < NARROWEST_WIDE:
        return _relay(functions, kind, call, sum(matrix.tiles for matrix in matrices), groups)
    shape = next(each for each in GROUPED if each.eights * EIGHT == size)
    memory = shape.memory(kind)
    blocks = sum(up(matrix.tiles, shape.tiles) for matrix in matrices), groups, 1
    return Launch(functions.of_type(kind, shape.name, memory), blocks, shape.warps * WARP, memory, call)


def group_size(rows: int, groups: int) -> int:
    """The size of groups for so many rows in all, which belong to so many: nearly all of most are in one."""
    return next((size for size, most in GROUPS.items() if rows <= most * groups), max(GROUPS))


def _relay(functions: Functions, kind: GgmlType, call: GpuProducts, tiles: int, pairs: int) -> Launch:
    relay = next(each for each in NARROW if call.rows <= each.rows)
    warps = _warps(tiles * pairs, kind, relay, functions.block_memory)
    memory = relay.memory(kind, warps)
    name = f"narrow_{relay.rows}_by_{warps}"
    return Launch(functions.of_type(kind, name, memory), (tiles, pairs, 1), warps * WARP, memory, call)


def _rectangle(functions: Functions, kind: GgmlType, rows: int, matrices: Sequence[GpuMatrix]) -> Rectangle:
    """The larger rectangle where its blocks keep the card busy to the end, and fit."""
    most, (large, small) = next(each for each in WIDE.items() if rows <= each[0])
    blocks = sum(up(matrix.tiles, large.tiles) for matrix in matrices) * up(rows, EIGHT * large.eights)
    slots = HELD * functions.multiprocessors
    full = blocks / (up(blocks, slots) * slots) >= FULL if most > max(WIDE_TO) else blocks >= functions.multiprocessors
    return large if full and large.memory(kind) <= functions.block_memory else small


def _warps(tiles: int, kind: GgmlType, relay: Relay, most: int) -> int:
    """The warps that share a tile, whose rings fit into what a card gives a block."""
    wanted = 1 if tiles >= MANY_TILES else 2 if kind == ggml.Q8_0 else 4
    return next(warps for warps in (4, 2, 1) if warps <= wanted and relay.memory(kind, warps) <= most)


def tiles_of(rows: int) -> int:
    """Tiles of so many rows of weights."""
    return up(rows, TILE)
