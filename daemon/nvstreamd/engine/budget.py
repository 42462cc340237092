"""How is a model's memory divided between weights and KV cache? Pure: sizes and wishes in, shares out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.engine.scheduler import FIRST
from nvstreamd.errors import MEMORY, BudgetTooSmall, NotEnoughMemory
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.memory import KV_UNTOLD, Bound
from nvstreamd.sizes import apart, mib
from nvstreamd.weights.flow.plan import check_budget
from nvstreamd.weights.packed.manifest import ALIGNMENT

# Where nobody says how much KV cache there is to be: KV_UNTOLD, or what all weights leave; but a part of all at least.
PARTS = 4
# However much is asked for: so many sequences of the model's whole context.
MOST_SEQUENCES = 64


@dataclass(frozen=True, slots=True)
class GroupSize:
    """A group of the KV cache: bytes of a page, and the most pages that a sequence holds at once."""

    page: int
    most: int

    @staticmethod
    def of(page: int, context: int, window: int | None) -> GroupSize:
        """A group whose layers see `window` tokens, or all of `context`.

        A window comes with room for as many tokens again, so that prompts come in chunks.
        """
        tokens = context if window is None else min(context, window + max(window, FIRST) + PAGE_TOKENS)
        return GroupSize(page, -(-tokens // PAGE_TOKENS))


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes in bytes: all weights, the least that they stream through; the groups of its KV cache.

    `path` is where it lies, for messages.
    """

    path: str
    weights: int
    least: int
    groups: tuple[GroupSize, ...]

    @property
    def page(self) -> int:
        """Bytes of a page in every group."""
        return sum(group.page for group in self.groups)

    def pages_within(self, nbytes: int, sequences: int) -> tuple[int, ...]:
        """The most pages of each group that fit into so many bytes, none more than so many sequences can hold."""
        low, high = 0, max(group.most for group in self.groups) * sequences
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.kv_bytes(self._up_to(middle, sequences)) <= nbytes else (low, middle - 1)
        return self._up_to(low, sequences)

    def kv_bytes(self, pages: Sequence[int]) -> int:
        """Bytes of so many pages in each group."""
        return sum(group.page * count for group, count in zip(self.groups, pages, strict=True))

    def _up_to(self, count: int, sequences: int) -> tuple[int, ...]:
        return tuple(min(count, group.most * sequences) for group in self.groups)


@dataclass(frozen=True, slots=True)
class Shares:
    """`weights` bytes at most for weights, `kv` bytes in `pages` of each group of the KV cache."""

    weights: int
    pages: tuple[int, ...]
    kv: int


def divide(sizes: Sizes, memory: int, budget: int, kv_budget: int, sequences: int) -> Shares:
    """The shares of `memory`, in bytes; 0 as `budget` or `kv_budget` is for nobody having said.

    `sequences` run at once. Raises BudgetTooSmall with the smallest workable figure.
    """
    check_budget(sizes.path, budget or max(memory - kv_budget, 0), sizes.least)
    # A budget is a ceiling: one that is more than the model has leaves the rest to the KV cache.
    weights = min(budget or sizes.least, max(sizes.weights, sizes.least))
    room = max(0, memory - weights)
    most = MOST_SEQUENCES
    if not kv_budget:
        kv_budget = min(room, KV_UNTOLD, max(memory // PARTS, memory - sizes.weights))
        most = sequences
    pages = sizes.pages_within(kv_budget, most)
    kv = sizes.kv_bytes(pages)
    if not kv:
        given, least = apart(kv_budget, sizes.page)
        raise BudgetTooSmall(f"a KV budget of {given} is too small", f"one page of {PAGE_TOKENS} tokens takes {least}",
                             field="kv_budget")
    if weights + kv > memory:
        raise BudgetTooSmall(f"{mib(weights)} of weights and {mib(kv)} of KV cache are more than the "
                             f"{mib(memory)} that there are", "ask for less of either", field="budget")
    weights = min(budget or memory - max(kv_budget, kv), max(sizes.weights, sizes.least))
    return Shares(weights // ALIGNMENT * ALIGNMENT, pages, kv)


def check_free(sizes: Sizes, shares: Shares, bound: Bound | None) -> None:
    """Raises NotEnoughMemory when the shares are more than `bound` has free: we would be killed."""
    kv = shares.kv
    if bound is None or shares.weights + kv <= bound.free:
        return
    room = (bound.free - kv) // ALIGNMENT * ALIGNMENT
    hint = (f"a budget of at most {mib(room)} fits" if room >= sizes.least else
            f"the least that works is a budget of {mib(sizes.least)} and a kv_budget of one page: free some memory")
    raise NotEnoughMemory(f"{sizes.path}: {mib(shares.weights)} of weights and {mib(kv)} of KV cache are more than "
                          f"the {mib(bound.free)} that {bound.name} has left of {mib(bound.limit)}", hint, field=MEMORY)
