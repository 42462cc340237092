"""Where do the seconds of a pass go, and the bytes of its weights?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nvstreamd.engine.cost import Multiplied, PassCost
from nvstreamd.engine.routed import ExpertCost
from nvstreamd.engine.scheduler import Work
from nvstreamd.kernels.device import Device
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.flow import Flow, Needs


class PassClock:
    """The seconds of a pass by kind of weights; the head multiplies `wanted` of its `rows` rows."""

    def __init__(self, flow: Flow, device: Device, rows: int, wanted: int) -> None:
        self.flow = flow
        self.device = device
        self.experts = ExpertCost(np.zeros(rows))
        self._rows = {Kind.LAYER: rows, Kind.EXPERT: rows, Kind.HEAD: wanted}
        self._seconds = dict.fromkeys(Kind, 0.0)
        self._nbytes = dict.fromkeys(Kind, 0)
        self._now = flow.mover.now
        self._began = self._now()
        self._waited = flow.counters.waited_seconds
        self._on_host = self._host_seconds()

    def multiplied(self, key: Key, began: float) -> None:
        """The stage of a key has ended that began then."""
        now, trace = self._now(), self.flow.mover.trace
        self._seconds[key.kind] += now - began
        self._nbytes[key.kind] += self.flow.segments[key].nbytes
        if trace is not None:
            trace.event(self.device.name, key.name, began, now, rows=self._rows[key.kind])

    def routed(self, layer: Key, began: float) -> None:
        """The experts of a layer have ended that began then, waits for them among that."""
        trace = self.flow.mover.trace
        if trace is not None:
            trace.event(self.device.name, f"experts of {layer.name}", began, self._now(),
                        rows=self._rows[Kind.EXPERT])

    def cost(self, needs: Needs, work: Sequence[Work], read_bytes: int, read_seconds: float) -> PassCost:
        """All of it, the pass having ended; so many bytes came since the pass before, in so many seconds of reads."""
        now, trace, rows = self._now(), self.flow.mover.trace, self._rows[Kind.LAYER]
        waited = self.flow.counters.waited_seconds - self._waited
        experts = self.experts
        streamed = needs.streamed_bytes + experts.missed_bytes
        if trace is not None:
            trace.event("passes", f"{rows} rows", self._began, now, streamed_bytes=streamed)
        on_host = self._of_device(now - self._began - waited, needs)
        multiplied = {kind: Multiplied(self._rows[kind], self._nbytes[kind], took)
                      for kind, took in self._seconds.items() if took}
        begins = np.cumsum([0, *(item.rows for item in work)])
        caused = [needs.streamed_bytes / len(work) + float(experts.caused[begin:end].sum())
                  for begin, end in pairwise(begins)]
        own = self.flow.own is not None
        # In host memory, and in the device's own: experts in both, or in one of the two alone.
        here = experts.hit_bytes - experts.near_bytes
        in_memory = here + (needs.brought_bytes - needs.streamed_bytes + needs.host_bytes if own
                            else needs.resident_bytes)
        return PassCost(
            rows, streamed, in_memory, read_bytes, read_seconds, waited, multiplied, now - self._began, caused,
            experts.missed_bytes, needs.brought_bytes, needs.resident_bytes + experts.near_bytes if own else 0, on_host)

    def _of_device(self, seconds: float, needs: Needs) -> Multiplied | None:
        """Says which kinds of weights took those seconds; what the processor did beside a card comes back."""
        experts = self.experts
        self._seconds[Kind.EXPERT], self._nbytes[Kind.EXPERT] = (
            experts.seconds, experts.hit_bytes + experts.missed_bytes)
        if self.flow.own is None:
            return None
        # It computes while nobody looks: each kind has its part of the seconds by its bytes.
        looked_at = {Kind.EXPERT} if self.flow.experts is not None else set()
        on_host = self._host_seconds() - self._on_host - sum(self._seconds[kind] for kind in looked_at)
        seconds -= max(0.0, on_host) + sum(self._seconds[kind] for kind in looked_at)
        self._nbytes[Kind.LAYER] -= needs.host_bytes
        shares = {kind: nbytes for kind, nbytes in self._nbytes.items() if kind not in looked_at}
        total = sum(shares.values())
        for kind, nbytes in shares.items():
            self._seconds[kind] = max(0.0, seconds) * nbytes / total if total else 0.0
        return Multiplied(self._rows[Kind.LAYER], needs.host_bytes, on_host) if needs.host_bytes else None

    def _host_seconds(self) -> float:
        return 0.0 if self.device.host is None else self.device.host.seconds
