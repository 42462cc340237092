"""How do experts run that all rest in a device's own memory? In one go: nobody asks which are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvdma.fence import Fence
from nvdma.memory import Span
from nvstreamd.engine.routed import ExpertCost
from nvstreamd.kernels.device import Device, RestingWeights
from nvstreamd.pieces import Key
from nvstreamd.program import Experts, Model, Stage
from nvstreamd.weights.flow.flow import Flow


@dataclass(frozen=True, slots=True)
class _Ready:
    """A layer's experts, and what brings their parts together, as the device wants them."""

    experts: Any
    mix: Any


class Resting:
    """Runs the experts of stages where they rest."""

    def __init__(self, model: Model, flow: Flow, device: Device, resting: RestingWeights, constants: Span) -> None:
        self.flow = flow
        self.device = device
        self.resting = resting
        self.constants = constants
        self._ready: dict[Key, _Ready] = {
            stage.key: self._prepare(stage.experts) for stage in model.stages if stage.experts}

    def _prepare(self, experts: Experts) -> _Ready:
        tensors = [self.flow.segments[key].by_name for key in experts.keys]
        spans = [self.flow.rests(key).span for key in experts.keys]
        return _Ready(self.resting.prepare_all(experts.program, tensors, spans), self.device.prepare(experts.mix, {}))

    def run(self, stage: Stage, number: int, after: Fence, cost: ExpertCost) -> Fence:
        """Runs the experts of a stage, whose program has ended in Route, and mixes them. Raises KernelError.

        Nobody knows which were wanted: the cost is that of as many as rows can want at most.
        """
        ready, experts = self._ready[stage.key], stage.experts
        assert experts is not None
        most = min(len(experts.keys), experts.used * cost.caused.size)
        nbytes = most * self.flow.segments[experts.keys[0]].nbytes
        cost.hit_bytes += nbytes
        cost.near_bytes += nbytes
        return self.device.run(ready.mix, self.constants, number, self.resting.run_all(ready.experts, after))
