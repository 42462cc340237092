"""Where do a pass's activations, its facts and its keys and values lie in a card's memory?

Buffers grow to the widest pass; what is begun on old ones has ended by then. `generation` counts: with it change the
addresses that graphs hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from nvdma.arena import Arena
from nvdma.gpu.driver import Driver
from nvstreamd.kernels.gpu_form import BLOCK, up
from nvstreamd.kernels.gpu_structs import GpuActivations, GpuQueries, GpuStretch
from nvstreamd.kernels.gpu_take import Taker
from nvstreamd.kernels.rows import PAGE_TOKENS, Rows
from nvstreamd.program import KvGroup

FEWEST_ROWS = 32
CHUNK_TOKENS = 256
# No stage has left anything that is not finite.
SOUND = 0x7FFFFFFF
FLOAT, WORD, LONG = 4, 4, 8


class Buffers:
    """VRAM by name, of a size that only grows. `close` gives all of it back."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.generation = 0
        self._found: dict[str, tuple[int, int]] = {}

    def at(self, name: str, nbytes: int) -> int:
        """The address of a buffer of that many bytes at least; what it held is lost where it grows.

        Raises GpuOutOfMemory: then there is no such buffer until it is asked for again.
        """
        address, there = self._found.get(name, (0, 0))
        if nbytes > there or not address:
            # The old address is of no use from here on, whether there is a new one or not.
            self.generation += 1
            if address:
                del self._found[name]
                self.driver.free(address)
            self._found[name] = self.driver.allocate(max(nbytes, 1)), nbytes
        return self._found[name][0]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(nbytes for _, nbytes in self._found.values())

    def close(self) -> None:
        """Gives everything back."""
        while self._found:
            self.driver.free(self._found.popitem()[1][0])


class Desk:
    """Host memory that the card reaches, for what goes to it and comes back; it grows, too."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._stack = ExitStack()
        self._arena: Arena | None = None

    def bytes(self, nbytes: int) -> tuple[int, memoryview]:
        """The address and the bytes; nothing that uses what was there may be under way. Raises GpuFailed."""
        if self._arena is None or self._arena.nbytes < nbytes:
            self.close()
            arena = Arena(max(nbytes, 1 << 20))
            self._stack.enter_context(arena)
            self.driver.register(arena.address, arena.nbytes)
            self._stack.callback(self.driver.unregister, arena.address)
            self._arena = arena
        return self._arena.address, self._arena.view[:nbytes]

    def close(self) -> None:
        """Gives it back."""
        self._arena = None
        self._stack.close()


@dataclass(frozen=True, slots=True)
class Tiling:
    """How queries that share key-value heads are dealt to blocks of threads: `size` of them each, over `tiles`.

    A tile sees `chunks` of 256 tokens at most, 0 where one block goes through all; `at` is where the table of tiles
    lies. What chunks found takes `parts` bytes until it is joined.
    """

    size: int
    tiles: int
    chunks: int
    at: int
    parts: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a pass decides which work a stage is: rows, how many are wanted, and the tilings of its attention."""

    rows: int
    wanted: int
    stretches: int
    tilings: tuple[tuple[int, int, int], ...]
    generation: int


def chunks_seen(begin: int, count: int, window: int | None) -> int:
    """Chunks that some row of a stretch sees."""
    first = 0 if window is None else max(0, begin + 1 - window) // CHUNK_TOKENS
    return (begin + count - 1) // CHUNK_TOKENS - first + 1


def bucket(count: int) -> int:
    """The power of two that is not less: alike passes are one."""
    return 1 << (count - 1).bit_length()


def tile_size(rows: Rows, ratio: int) -> int:
    """Queries of a block of threads, of `ratio` heads to a key-value head."""
    return 4 if max(stretch.count for stretch in rows.stretches) * ratio <= 4 else 8


def queries(rows: Rows, ratio: int, size: int) -> list[tuple[int, int]]:
    """(stretch, first query) of each block."""
    return [(number, first) for number, stretch in enumerate(rows.stretches)
            for first in range(0, stretch.count * ratio, size)]


class Facts:
    """What a pass tells the kernels, written at once: each part of it at a place that a wider pass alone moves."""

    def __init__(self, buffers: Buffers, desk: Desk) -> None:
        self.buffers = buffers
        self.desk = desk
        self._capacity: dict[str, int] = {}
        self._content: dict[str, bytes] = {}

    def put(self, name: str, content: bytes) -> None:
        """Says what a part holds in this pass."""
        self._content[name] = content
        size = up(len(content), 256) * 256
        if size > self._capacity.get(name, 0):
            # Twice as much: page tables grow token by token.
            self._capacity[name] = 2 * size

    def send(self, taker: Taker) -> dict[str, int]:
        """Sends all parts at once; their addresses."""
        total = sum(self._capacity.values())
        address, view = self.desk.bytes(total)
        found, at = {}, 0
        with view:
            to = self.buffers.at("facts", total)
            for name, capacity in self._capacity.items():
                content = self._content.get(name, b"")
                view[at : at + len(content)] = content
                found[name] = to + at
                at += capacity
        taker.take(to, address, total)
        return found


def facts_of(rows: Rows, groups: int, ratios: Sequence[int]) -> Mapping[str, bytes]:
    """The parts of a pass: positions, wanted rows, stretches and pages by group, tiles by ratio and size."""
    parts: dict[str, bytes] = {
        "unsound": np.array([SOUND], np.int32).tobytes(),
        "positions": rows.positions().astype(np.int64).tobytes(),
        "wanted": np.array(rows.wanted, np.int64).tobytes(),
    }
    for number in range(groups):
        pages: list[int] = []
        stretches = (GpuStretch * len(rows.stretches))()
        for place, stretch in enumerate(rows.stretches):
            stretches[place] = GpuStretch(stretch.first, stretch.count, stretch.begin, len(pages))
            pages += stretch.pages[number]
        parts[f"stretches {number}"] = bytes(stretches)
        parts[f"pages {number}"] = np.array(pages, np.int64).tobytes()
    for ratio in ratios:
        dealt = queries(rows, ratio, tile_size(rows, ratio))
        parts[f"tiles {ratio}"] = bytes((GpuQueries * len(dealt))(*(GpuQueries(*each) for each in dealt)))
    return parts


def activations_of(buffers: Buffers, name: str, rows: int, capacity: int, columns: int) -> GpuActivations:
    """Room for so many `rows` quantised; the buffers have it for `capacity` rows of as many columns."""
    quads, most, eights = up(columns, 4 * BLOCK), up(capacity, 8), up(rows, 8)
    halves = quads * most * 128
    q = buffers.at(f"{name} q", quads * most * 1024)
    scales = buffers.at(f"{name} d", 4 * halves)
    return GpuActivations(q, scales, scales + halves, scales + 2 * halves, halves, eights)


def kv_bytes(group: KvGroup) -> int:
    """Bytes of a page."""
    return PAGE_TOKENS * group.elements * 2
