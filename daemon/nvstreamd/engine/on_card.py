"""How is a model's memory divided where its device has memory of its own? Between that and the host's, by what fits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvstreamd.engine.budget import Shares, Sizes, divide
from nvstreamd.errors import BudgetTooSmall
from nvstreamd.kernels.device import HostProducts, OwnMemory
from nvstreamd.kernels.select import CardWishes
from nvstreamd.pieces import Key
from nvstreamd.weights.flow.expert_plan import experts_of
from nvstreamd.weights.flow.plan import (
    FEWEST_SLOTS,
    Plan,
    Rates,
    check_budget,
    dense_of,
    with_experts_beside,
    with_own_memory,
)
from nvstreamd.weights.packed.manifest import ALIGNMENT, Manifest, align_up

# Nothing was measured yet: what rests where does not depend on rates, only how many slots there are.
UNMEASURED = Rates(1e12, (5e10, 5e9))


@dataclass(frozen=True, slots=True)
class CardShares:
    """`own` of the device's memory: weights in their `forms`, keys and values. `host` bytes of the host's.

    Experts are in the device's memory, all of them, or they are `experts_here`: in the host's, and in both.
    """

    own: Shares
    forms: Mapping[Key, int]
    host: int
    experts_here: bool


def card_wishes(vram: int) -> CardWishes:
    """So many bytes of a card, 0 for what is free; its compiled kernels are kept in the caller's cache, if he has one.

    The XDG Base Directory Specification says where that is.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{os.environ['HOME']}/.cache" if os.environ.get("HOME") else None)
    return CardWishes(vram=vram, kept=None if cache is None else Path(cache) / "nvstreamd" / "kernels")


def forms_of(manifest: Manifest, own: OwnMemory) -> dict[Key, int]:
    """Bytes of each segment in the device's memory."""
    return {segment.key: align_up(own.form(segment.by_name).nbytes) for segment in manifest.segments}


def divide_on_card(sizes: Sizes, manifest: Manifest, own: OwnMemory, host: int, kv_budget: int, sequences: int,
                   in_flight: int, *, beside: bool = False) -> CardShares:
    """The shares of both memories; of the host's `host` bytes no more than is of use. Raises BudgetTooSmall.

    Where the processor multiplies `beside` the card, not all experts have to fit into its memory.
    """
    forms = forms_of(manifest, own)
    dense, experts = dense_of(forms).values(), sum(experts_of(forms).values())
    least = min(sum(dense), FEWEST_SLOTS * max(dense))
    of_form = replace(sizes, weights=sum(forms.values()), least=least + experts)
    here = False
    try:
        shares = divide(of_form, own.ceiling, 0, kv_budget, sequences)
        # Whatever every row needs is worth more there than experts are, which few rows need.
        here = beside and experts > 0 and shares.weights < sum(forms.values())
    except BudgetTooSmall:
        if not beside or not experts:
            raise
        here = True
    if here:
        shares = divide(replace(of_form, least=least), own.ceiling, 0, kv_budget, sequences)
    raw, constants = manifest.sizes, manifest.constants.nbytes
    staged = constants + FEWEST_SLOTS * align_up(max(raw.values()))
    check_budget(f"{sizes.path} beside a card", host, staged)
    budgets = shares.weights, host
    plan = (with_experts_beside(raw, forms, 1, constants, budgets, in_flight, UNMEASURED, 0) if here else
            with_own_memory(raw, forms, constants, budgets, in_flight, UNMEASURED, 0))
    behind = plan.tiers[1].memory if len(plan.tiers) > 1 else constants
    # What is brought at first passes through rooms that are given back before anything rests here.
    wanted = max(staged, behind + (0 if plan.experts is None else plan.experts.memory))
    return CardShares(shares, forms, min(host, -(-wanted // ALIGNMENT) * ALIGNMENT), here)


def describe(plan: Plan, own: OwnMemory, host: HostProducts | None) -> list[str]:
    """Lines for status: what rests where, what a pass moves, and what the processor multiplies."""
    first = plan.tiers[0]
    said = f"VRAM: {first.resting >> 20} MiB of weights rest there, of {own.ceiling >> 20} MiB that the model may have"
    if plan.experts is not None:
        near = 0 if plan.near is None else plan.near.memory
        said += (f"; {near >> 20} MiB are for experts, {plan.experts.memory >> 20} MiB of RAM for those that the "
                 f"processor multiplies; one that {plan.many} rows want is brought")
    if len(plan.tiers) == 1:
        return [said]
    behind = plan.tiers[1]
    lines = [f"{said}; {first.slots} slots of {first.slot_bytes >> 20} MiB for the others; {first.moved >> 20} MiB do "
             f"not rest there, of which {behind.moved >> 20} MiB come off the drive in a pass"]
    if host is not None:
        by_rows = ", ".join(f"{each.nbytes >> 20} MiB for up to {each.rows} rows" for each in plan.assignments
                            if each.nbytes)
        lines.append(f"{host.name} multiplies beside the card, where they rest in RAM: "
                     f"{by_rows or 'nothing, the link is faster'}")
    return lines
