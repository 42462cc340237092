"""How is a model's memory divided, and what is its plan by what was measured? On a processor, or a card beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from nvstreamd.engine.budget import Shares, Sizes, divide
from nvstreamd.engine.describe import ModelFile
from nvstreamd.engine.expectation import Curve, Measured
from nvstreamd.engine.on_card import divide_on_card
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.pieces import Key, Kind
from nvstreamd.program import Model
from nvstreamd.weights.flow.assignment import CardPass, assign
from nvstreamd.weights.flow.plan import Plan, Rates, with_experts, with_experts_beside, with_own_memory
from nvstreamd.weights.packed.manifest import Manifest

# More rows than any pass has.
NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryShares:
    """The shares of host memory; those of a device's own, where it has some, with the forms that weights take there.

    With `experts_here` experts are in host memory beside such a device, and in its own as far as there is room.
    """

    host: Shares
    own: Shares
    forms: Mapping[Key, int]
    experts_here: bool = False

    @property
    def pages(self) -> tuple[int, ...]:
        """The pages of each group of the KV cache, wherever they lie."""
        return self.own.pages if self.forms else self.host.pages


def divide_memory(sizes: Sizes, model: ModelFile, device: Device, memory: int, budget: int, kv_budget: int,
                  sequences: int, in_flight: int) -> MemoryShares:
    """The shares of `memory`, of which `budget` is for weights, and of the device's own. Raises BudgetTooSmall."""
    if device.own is None:
        shares = divide(sizes, memory, budget, kv_budget, sequences)
        return MemoryShares(shares, shares, {})
    found = divide_on_card(sizes, model.manifest, device.own, budget or memory, kv_budget, sequences, in_flight,
                           beside=device.host is not None)
    return MemoryShares(Shares(found.host, (), 0), found.own, found.forms, found.experts_here)


def plan_of(model: ModelFile, shares: MemoryShares, in_flight: int, measured: Measured) -> Plan:
    """Where each key rests, and how long a pass of one row takes. Raises BudgetTooSmall."""
    sizes, hyper, constants = model.manifest.sizes, model.hyper, model.manifest.constants.nbytes
    a_row = {key: size * (hyper.experts_used / hyper.experts if key.kind is Kind.EXPERT else 1.0)
             for key, size in sizes.items()}
    seconds = sum(size / measured.compute[key.kind][1] for key, size in a_row.items())
    rate = sum(a_row.values()) / seconds
    if measured.link is None:
        return with_experts(sizes, hyper.experts_used, constants, shares.host.weights, in_flight,
                            Rates(rate, (measured.read,)))
    budgets, rates = (shares.own.weights, shares.host.weights), Rates(rate, (measured.link, measured.read))
    multiplied = round(sum(a_row.values()))
    if not shares.experts_here:
        return with_own_memory(sizes, shares.forms, constants, budgets, in_flight, rates, multiplied)
    found = with_experts_beside(sizes, shares.forms, hyper.experts_used, constants, budgets, in_flight, rates,
                                multiplied)
    return replace(found, many=worth_bringing(measured.compute[Kind.EXPERT], measured.link))


def worth_bringing(products: Mapping[int, float], link: float) -> int:
    """The rows of an expert from which the link brings it sooner than the processor multiplies it.

    `products` are bytes a second, of one row at first, then of PAGE_TOKENS rows to an expert.
    """
    (_, one), (_, more) = sorted(products.items())
    each = max(0.0, 1.0 / more - 1.0 / one) / (PAGE_TOKENS - 1)
    return NEVER if not each else max(1, 1 + math.ceil((1.0 / link - 1.0 / one) / each))


def assignable(model: Model, plan: Plan) -> list[Key]:
    """What the processor could multiply beside a card: layers without experts that rest in host memory, in order."""
    if len(plan.tiers) < 2:
        return []
    return [stage.key for stage in model.stages
            if stage.key.kind is Kind.LAYER and stage.experts is None and stage.key in plan.tiers[1].rests]


def with_assignments(model: Model, manifest: Manifest, plan: Plan, measured: Measured) -> Plan:
    """The same plan, in which the processor multiplies what makes passes shorter, by their rows."""
    if measured.host is None or measured.link is None:
        return plan
    sizes = manifest.sizes
    layers = sum(size for key, size in sizes.items() if key.kind is Kind.LAYER)
    of = CardPass(layers, plan.tiers[0].moved, measured.link, plan.streamed_bytes / measured.read,
                  partial(Curve(measured.compute[Kind.LAYER]).seconds, layers))
    resting = {key: sizes[key] for key in assignable(model, plan)}
    found = replace(plan, assignments=assign(resting, of, measured.host))
    of_one = found.assigned(1).nbytes
    return replace(found, predicted_seconds=of.seconds(1, of_one, measured.host)) if of_one else found
