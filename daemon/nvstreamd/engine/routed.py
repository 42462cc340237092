"""How does a layer with experts run? Rows are regrouped by expert, and each expert serves its rows as it arrives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvdma.fence import Fence
from nvdma.memory import Span
from nvstreamd.kernels.arrays import Doubles, Ints, Longs
from nvstreamd.kernels.device import Device, Visit
from nvstreamd.program import Experts, Model, Stage
from nvstreamd.weights.flow.experts import ExpertFlow
from nvstreamd.weights.flow.mover import WAIT_SECONDS
from nvstreamd.weights.packed.manifest import Segment

# Places from which on numpy groups them faster than a loop.
MANY = 256


def group(routing: Ints) -> dict[int, Longs]:
    """The places row * used + rank that each expert serves, in ascending order, by a routing [rows, used]."""
    flat = routing.reshape(-1)
    if flat.size > MANY:
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        begins = np.flatnonzero(np.diff(ordered, prepend=-1))
        return dict(zip(ordered[begins].tolist(), np.split(order, begins[1:]), strict=True))
    # Of a few, numpy's dozen calls would take longer than the experts of a small model.
    found: dict[int, list[int]] = {}
    for place, expert in enumerate(flat.tolist()):
        found.setdefault(expert, []).append(place)
    return {expert: np.array(places, np.int64) for expert, places in found.items()}


@dataclass(slots=True)
class ExpertCost:
    """What a pass's experts took: seconds of products, bytes of those in memory, and that were not.

    `caused` [rows] are the bytes of misses, each shared by the rows that needed it. Of those in memory `near_bytes` lay
    in a device's own.
    """

    caused: Doubles
    seconds: float = 0.0
    hit_bytes: int = 0
    missed_bytes: int = 0
    near_bytes: int = 0

    def saw(self, segment: Segment, places: Longs, used: int, *, missed: bool, near: bool = False) -> None:
        """Takes note of an expert that serves the rows of these places."""
        if missed:
            self.missed_bytes += segment.read_bytes
            self.caused[places // used] += segment.read_bytes / places.size
        else:
            self.hit_bytes += segment.nbytes
            self.near_bytes += segment.nbytes if near else 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A layer's experts for the device: the mix, and each by its number, once it was wanted.

    Those whose tensors lie alike in their segments are prepared once.
    """

    mix: Any
    by_layout: dict[tuple[tuple[str, int], ...], Any] = field(default_factory=dict)
    by_number: dict[int, tuple[Any, Segment]] = field(default_factory=dict)


class Routed:
    """Runs the experts of stages. `on_route`, where there is one, sees (layer, experts of each row [rows, used])."""

    def __init__(self, model: Model, flow: ExpertFlow, device: Device, constants: Span) -> None:
        self.flow = flow
        self.device = device
        self.constants = constants
        self.on_route: Callable[[int, Ints], None] | None = None
        self._prepared = {stage.key: self._prepare(stage.experts) for stage in model.stages if stage.experts}

    def _prepare(self, experts: Experts) -> _Prepared:
        found = _Prepared(self.device.prepare(experts.mix, {}))
        # What does not suit the device is said now, not in a pass.
        self._ready(found, experts, 0)
        return found

    def _ready(self, prepared: _Prepared, experts: Experts, number: int) -> tuple[Any, Segment]:
        """The expert of that number for the device, and its segment."""
        ready = prepared.by_number.get(number)
        if ready is None:
            segment = self.flow.segments[experts.keys[number]]
            layout = tuple((placed.name, placed.offset) for placed in segment.tensors)
            if layout not in prepared.by_layout:
                prepared.by_layout[layout] = self.device.prepare(experts.program, segment.by_name)
            ready = prepared.by_number[number] = prepared.by_layout[layout], segment
        return ready

    def run(self, stage: Stage, number: int, after: Fence, cost: ExpertCost) -> Fence:
        """Runs the experts of a stage, whose program has ended in Route, and mixes them. Raises NvstreamError."""
        experts, prepared = stage.experts, self._prepared[stage.key]
        assert experts is not None
        done = after
        routing = self.device.routing()
        if self.on_route is not None:
            self.on_route(stage.key.number, routing)
        groups = group(routing)
        needs = {expert: places.size for expert, places in groups.items()}
        try:
            # What a failed pass held is let go of here, not when its traceback is.
            with closing(self.flow.serve(stage.key.number, needs)) as arriving:
                for arrived in arriving:
                    began = self.flow.now()
                    visits = []
                    for each, slot in arrived.slots:
                        (ready, segment), places = self._ready(prepared, experts, each), groups[each]
                        visits.append(Visit(ready, slot.span, places))
                        cost.saw(segment, places, experts.used, missed=each in arrived.missed,
                                 near=each in arrived.near)
                    done = self.device.experts(visits, done)
                    arrived.until(done)
                    cost.seconds += self.flow.now() - began
        except BaseException:
            # Whoever handles the error gives memory back: no work on it may go on.
            done.wait(WAIT_SECONDS)
            raise
        began = self.flow.now()
        done = self.device.run(prepared.mix, self.constants, number, done)
        cost.seconds += self.flow.now() - began
        return done
