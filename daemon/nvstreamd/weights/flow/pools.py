"""Which part of a tier's memory belongs to which key? A memory budget, cut into slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nvdma.arena import Arena
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd.errors import BudgetTooSmall
from nvstreamd.weights.packed.manifest import align_up


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of a pool: where it lies, and its bytes, which are gone once the pool was closed."""

    span: Span
    view: memoryview


class Pool:
    """Hands out slots of an open arena, front to back, and never more than there are."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._used = 0
        self._slots: list[Slot] = []

    def open(self, stack: ExitStack) -> None:
        """From here on slots may be taken; `stack` lets go of their views, so that the arena can close."""
        stack.callback(self._release)

    def take(self, nbytes: int) -> Slot:
        """A slot that is never given back. Raises BudgetTooSmall."""
        size = align_up(nbytes)
        if size > self.room:
            raise BudgetTooSmall(f"{size} bytes do not fit: {self.room} are left of the budget",
                                 "give the model a larger budget")
        memory = Memory(MemoryKind.HOST, self.arena.address, self.arena.nbytes)
        slot = Slot(Span(memory, self._used, size), self.arena.view[self._used : self._used + size])
        self._used += size
        self._slots.append(slot)
        return slot

    @contextmanager
    def borrowed(self, nbytes: int) -> Iterator[Slot]:
        """A slot for as long as the with block; nothing else may be taken meanwhile. Raises BudgetTooSmall."""
        before = self._used
        slot = self.take(nbytes)
        try:
            yield slot
        finally:
            self._slots.remove(slot)
            slot.view.release()
            self._used = before

    @property
    def used(self) -> int:
        """Bytes handed out so far: what the budget is held against."""
        return self._used

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self.arena.nbytes - self._used

    def _release(self) -> None:
        for slot in self._slots:
            slot.view.release()
        self._slots.clear()
