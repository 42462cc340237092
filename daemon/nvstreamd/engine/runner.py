"""How does one pass over the weights turn a batch of tokens into scores?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvdma.fence import DONE, Fence
from nvstreamd.engine.cost import PassCost
from nvstreamd.engine.pass_clock import PassClock
from nvstreamd.engine.resting import Resting
from nvstreamd.engine.routed import Routed
from nvstreamd.engine.scheduler import Work
from nvstreamd.errors import BadModelFile
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.host_bytes import host_bytes
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.pieces import Key, Kind
from nvstreamd.program import Model, Stage
from nvstreamd.weights.flow.embedding import EmbeddingRows
from nvstreamd.weights.flow.flow import Flow
from nvstreamd.weights.flow.mover import WAIT_SECONDS
from nvstreamd.weights.flow.pools import Slot
from nvstreamd.weights.packed.manifest import TABLE, Manifest, Segment

# Looked at for NaN at a time: as float32 it is several times as much.
LOOK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of a pass as rows, and their token ids [rows]."""

    token_ids: list[int]
    rows: Rows


@dataclass(frozen=True, slots=True)
class Computed:
    """The scores [sampled rows, vocabulary] float32 that a pass gave, and its cost."""

    scores: Floats
    cost: PassCost


def lay_out(work: Sequence[Work]) -> Batch:
    """The rows of a pass: each request's tokens beside each other."""
    token_ids: list[int] = []
    stretches: list[Stretch] = []
    wanted: list[int] = []
    for item in work:
        stretches.append(Stretch(len(token_ids), item.rows, item.begin,
                                  [table.pages for table in item.request.kept.tables]))
        token_ids += [*item.request.tokens[item.begin : item.begin + item.count], *item.draft]
        if item.samples:
            wanted += range(len(token_ids) - 1 - len(item.draft), len(token_ids))
    return Batch(token_ids, Rows(stretches, wanted))


@dataclass(frozen=True, slots=True)
class _Ready:
    """Stage `number` of the model, and what the device made of its program."""

    number: int
    stage: Stage
    program: Any

    @property
    def key(self) -> Key:
        """The key of its weights."""
        return self.stage.key


class Runner:
    """Runs passes on an open device. The weights come from the flow, in the order of the model's stages."""

    def __init__(self, model: Model, manifest: Manifest, flow: Flow, embedding: EmbeddingRows, device: Device,
                 constants: Slot) -> None:
        self.model = model
        self.manifest = manifest
        self.flow = flow
        self.embedding = embedding
        self.device = device
        self.constants = constants
        self._read = (0, 0.0)
        self.routed: Routed | Resting | None = None
        if flow.experts is not None:
            self.routed = Routed(model, flow.experts, device, constants.span)
        elif device.resting is not None and any(stage.experts for stage in model.stages):
            self.routed = Resting(model, flow, device, device.resting, constants.span)
        if device.resting is not None and len(flow.plan.tiers) == 1:
            device.resting.chain()
        self._stages = [_Ready(number, stage, device.prepare(stage.program, flow.segments[stage.key].by_name))
                        for number, stage in enumerate(model.stages)]
        self._layers = [stage for stage in self._stages if stage.key.kind is not Kind.HEAD]

    def run(self, work: Sequence[Work]) -> Computed:
        """One pass. Where nobody samples the head is not read. Raises NvstreamError."""
        self.flow.check_unchanged()
        batch = lay_out(work)
        stages = self._stages if batch.rows.wanted else self._layers
        clock = PassClock(self.flow, self.device, batch.rows.count, len(batch.rows.wanted))
        assigned = self.flow.plan.assigned(batch.rows.count)
        needs = self.flow.expect([stage.key for stage in stages], assigned.keys)
        if self.flow.experts is not None:
            # Whoever samples has one row in the next pass; who does not, goes on with the prompt.
            samples = all(item.samples for item in work)
            self.flow.experts.begin(batch.rows.count, len(work) if samples else batch.rows.count)
        self.device.begin(batch.rows, self.embedding.table.type, self.embedding.fetch(batch.token_ids))
        self._multiply(stages, clock)
        scores = self.device.scores()
        if scores.unsound is not None:
            raise self._accused(self.model.stages[scores.unsound].key, batch.token_ids)
        return Computed(scores.values, clock.cost(needs, work, *self.read_since_last()))

    def _multiply(self, stages: Sequence[_Ready], clock: PassClock) -> None:
        done: Fence = DONE
        try:
            for stage in stages:
                with self.flow.segment(stage.key) as held:
                    began = self.flow.mover.now()
                    done = self.device.run(stage.program, held.slot.span, stage.number, done)
                    clock.multiplied(stage.key, began)
                    held.until(done)
                if self.routed is not None and stage.stage.experts is not None:
                    began = self.flow.mover.now()
                    done = self.routed.run(stage.stage, stage.number, done, clock.experts)
                    clock.routed(stage.key, began)
        except BaseException:
            # Whoever handles the error gives memory back: no work on it may go on.
            done.wait(WAIT_SECONDS)
            raise

    def read_since_last(self) -> tuple[int, float]:
        """Bytes that came since this was last asked, and the seconds in which reads were in flight."""
        last, self._read = self._read, (self.flow.counters.streamed_bytes, self.flow.mover.read_seconds)
        return self._read[0] - last[0], self._read[1] - last[1]

    def _accused(self, key: Key, token_ids: Sequence[int]) -> BadModelFile:
        """The error for a stage that left NaN or infinity: whatever went into it is looked at once more."""
        segment = self.flow.segments[key]
        culprit = self._accused_in(segment)
        if culprit is None and self.flow.experts is not None:
            culprit = self._accused_expert(key)
        culprit = culprit or first_not_finite(self.manifest.constants, self.constants) or self._embedded(token_ids)
        where = self.manifest.paths[segment.extents[0].file]
        if culprit is None:
            return BadModelFile(f"{where}: the activations overflow in {key.name}", "the weights are not sane",
                                field=key.name)
        return BadModelFile(f"{where}: {culprit} has weights that are NaN or infinite",
                            "the file is damaged: fetch or convert it again", field=culprit)

    def _accused_in(self, segment: Segment) -> str | None:
        """The first tensor of a segment with NaN or infinity; None, too, where host memory does not have it."""
        if self.flow.own is not None:
            raw = self.flow.raw(segment.key)
            return None if raw is None else first_not_finite(segment, raw)
        self.flow.expect([segment.key])
        with self.flow.segment(segment.key) as held:
            return first_not_finite(segment, held.slot)

    def _accused_expert(self, layer: Key) -> str | None:
        """The first tensor with NaN or infinity among the experts of a layer."""
        assert self.flow.experts is not None
        stage = next(each.stage for each in self._stages if each.key == layer)
        self.flow.experts.begin(1, 1)
        for number, key in enumerate(() if stage.experts is None else stage.experts.keys):
            with closing(self.flow.experts.serve(layer.number, {number: 1})) as arriving:
                arrived = next(arriving)
                # What lies in the device's own memory cannot be looked at.
                culprit = None if arrived.near else first_not_finite(self.flow.segments[key], arrived.slots[0][1])
                if culprit is not None:
                    return f"{culprit}, expert {number},"
        return None

    def _embedded(self, token_ids: Sequence[int]) -> str | None:
        """The embedding's name, if a row of these tokens has NaN or infinity."""
        table = self.embedding.table
        for token in sorted(set(token_ids)):
            raw = np.frombuffer(self.embedding.fetch([token]), np.uint8)
            if not np.isfinite(dequantise(table.type, raw, table.columns)).all():
                return f"{TABLE}, row {token},"
        return None


def first_not_finite(segment: Segment, slot: Slot) -> str | None:
    """The first tensor of a segment that holds NaN or infinity, by the name that its file has for it."""
    for placed in segment.tensors:
        row = placed.type.row_bytes(placed.shape[-1])
        step = max(1, LOOK_BYTES // row) * row
        for begin in range(0, placed.nbytes, step):
            raw = host_bytes(slot.span, placed.offset + begin, min(step, placed.nbytes - begin))
            if not np.isfinite(dequantise(placed.type, raw, placed.shape[-1])).all():
                return placed.slice.tensor
    return None
