"""What is everybody told of a model that somebody loaded? What its engines said last, and why routes were given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nvstreamd.supervisor.budget import Taken
from nvstreamd.supervisor.deployment import LoadOrder
from nvstreamd.supervisor.known import Listed, ModelFacts, Placement, State
from nvstreamd.supervisor.reports import Loaded, Stats


class Entry:
    """One model as `status` and lists show it: `state`, `error`, and `facts`, `placement`, `stats` of its engine."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.state = State.UNLOADED
        self.error = ""
        self.facts = ModelFacts()
        self.placement = Placement()
        self.stats = Stats()

    @property
    def listed(self) -> Listed:
        """The model as everybody is told of it."""
        return Listed(self.order.name, self.order.path, self.state, self.facts, self.placement, self.error)

    @property
    def taken(self) -> Taken:
        """Bytes of the daemon's `memory` that the model takes: what was allowed, once it is planned what it uses."""
        if self.state == State.FAILED:
            return Taken(0, 0)
        if self.placement.budget:
            return Taken(self.placement.budget, self.placement.kv_budget)
        allowed = self.order.settings
        return Taken(allowed.memory - allowed.kv_budget, allowed.kv_budget)

    @property
    def longest_pass(self) -> float:
        """Seconds that a pass takes, as was predicted or measured, whichever is more."""
        return max(self.placement.predicted_pass_seconds, self.placement.measured_pass_seconds or 0.0)

    def loaded(self, by: Loaded, notes: Iterable[str]) -> None:
        """Takes over what an engine says that can answer now, with notes of the daemon's own."""
        self.facts, self.placement, self.error = by.facts, by.placement.noting(*notes), ""

    def measured(self, stats: Stats) -> None:
        """Takes over what an engine counted, and what it now thinks that a pass takes."""
        self.stats = stats
        if stats.pass_seconds is not None:
            self.placement = replace(self.placement, measured_pass_seconds=stats.pass_seconds)
        if stats.predicted_pass_seconds is not None:
            self.placement = replace(self.placement, predicted_pass_seconds=stats.predicted_pass_seconds,
                                     read_bytes_per_second=stats.read_bytes_per_second)

    def note(self, notes: Iterable[str], instead: Iterable[str] = ()) -> None:
        """Adds notes that are not there yet, behind those that stay: all but the ones that they come instead of."""
        gone, new = set(instead), list(notes)
        others = [note for note in self.placement.notes if note not in gone]
        self.placement = replace(self.placement, notes=(*others, *(note for note in new if note not in others)))
