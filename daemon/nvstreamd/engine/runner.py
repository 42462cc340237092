"""How does one pass over the weights turn a batch of tokens into logits?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvstreamd.architectures.decoder import decoder_layer, inverse_frequencies, rope_angles
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.ops import Attention
from nvstreamd.engine.kv_store import heads_of
from nvstreamd.engine.scheduler import Work
from nvstreamd.engine.segment_view import SegmentView
from nvstreamd.errors import BadModelFile
from nvstreamd.kernels.batch import Batch, Cache, Floats, Span
from nvstreamd.kernels.cpu_ops import CpuAttention, CpuOps
from nvstreamd.kernels.cpu_program import Programs, Recorder
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.kernel_set import KernelSet
from nvstreamd.weights.embedding import EmbeddingRows
from nvstreamd.weights.manifest import Manifest, Segment
from nvstreamd.weights.slots import Region
from nvstreamd.weights.streamer import Streamer


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch as rows: token ids and positions [rows], filled up to whole tiles; `sampled` rows need logits."""

    token_ids: list[int]
    positions: npt.NDArray[np.int64]
    spans: list[Span]
    sampled: list[int]


def lay_out(work: Sequence[Work], row_tile: int) -> Layout:
    """The rows of a pass: each request's tokens beside each other, padding at the end."""
    token_ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    sampled: list[int] = []
    for item in work:
        spans.append(Span(len(token_ids), item.count, item.begin, item.request.pages))
        token_ids += item.request.tokens[item.begin : item.begin + item.count]
        positions += range(item.begin, item.begin + item.count)
        if item.samples:
            sampled.append(len(token_ids) - 1)
    padding = -len(token_ids) % row_tile
    return Layout(token_ids + [0] * padding, np.array(positions + [0] * padding), spans, sampled)


class Runner:
    """Runs passes. Holds the model's constants; the weights come from the streamer."""

    def __init__(self, hyper: Hyper, manifest: Manifest, streamer: Streamer, embedding: EmbeddingRows, cache: Cache,
                 ops: KernelSet, constants: Region) -> None:
        self.hyper = hyper
        self.manifest = manifest
        self.streamer = streamer
        self.embedding = embedding
        self.cache = cache
        self.ops = ops
        self._views: dict[tuple[str, int], SegmentView] = {}
        self._programs = Programs(ops, hyper.width, heads_of(hyper), cache) if isinstance(ops, CpuOps) else None
        fixed = SegmentView(manifest.constants, constants.data)
        self.output_norm = fixed.vector("output_norm.weight")
        factors = fixed.vector("rope_freqs.weight") if fixed.has("rope_freqs.weight") else None
        self.frequencies = inverse_frequencies(hyper, factors)

    def forget_views(self) -> None:
        """Lets go of the slots, so that they can be given back."""
        self._views.clear()
        if self._programs is not None:
            self._programs.forget()

    def run(self, work: Sequence[Work]) -> Floats:
        """One pass; returns logits [sampled rows, vocabulary] float32. Raises NvstreamError."""
        self.streamer.check_unchanged()
        layout = lay_out(work, self.ops.row_tile)
        x = self._embed(layout.token_ids)
        if self._programs is not None:
            x = self._programs.begin(x)
        batch = Batch(layout.spans, *rope_angles(self.frequencies, layout.positions))
        attention = self.ops.attention(heads_of(self.hyper), self.cache, batch)
        for number, segment in enumerate(self.manifest.layers):
            with self.streamer.segment(number) as region:
                view = self._view(segment, region)
                self._layer(view, x, attention, number)
                self._check_finite(x, view)
        return self._logits(x, layout.sampled)

    def _layer(self, view: SegmentView, x: Floats, attention: Attention, number: int) -> None:
        if self._programs is None or not isinstance(attention, CpuAttention):
            decoder_layer(self.hyper, self.ops, view, x, attention, number)
            return

        def describe(recorder: Recorder) -> None:
            decoder_layer(self.hyper, recorder, view, recorder.hidden, recorder, number)

        self._programs.run(view, describe, attention)

    def _view(self, segment: Segment, region: Region) -> SegmentView:
        key = (segment.name, region.offset)
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = SegmentView(segment, region.data)
        return found

    def _embed(self, token_ids: Sequence[int]) -> Floats:
        table = self.embedding.table
        packed = np.frombuffer(self.embedding.fetch(token_ids), np.uint8)
        return dequantise(table.type, packed, table.columns)

    def _logits(self, x: Floats, sampled: Sequence[int]) -> Floats:
        """The head's segments pass by in any case: the read-ahead counts on their turn."""
        padded = list(sampled) + [0] * (-len(sampled) % self.ops.row_tile)
        normed = self.ops.rms_norm(x[padded], self.output_norm, self.hyper.epsilon)
        logits = np.empty((len(padded), self.hyper.vocabulary), np.float32)
        for number, segment in enumerate(self.manifest.head, start=len(self.manifest.layers)):
            with self.streamer.segment(number) as region:
                view = self._view(segment, region)
                weight = view.matrix(segment.tensors[0].name.removesuffix(".weight"))
                if sampled:
                    piece = logits[:, segment.first_row : segment.first_row + weight.rows]
                    self.ops.linear(normed, weight, piece)
                    self._check_finite(piece, view)
        return logits[: len(sampled)]

    def _check_finite(self, x: Floats, view: SegmentView) -> None:
        if self.ops.finite(x):
            return
        where = self.manifest.paths[view.segment.extents[0].file]
        culprit = view.first_not_finite()
        if culprit is None:
            raise BadModelFile(f"{where}: the activations overflow in {view.segment.name}", "the weights are not sane",
                               field=view.segment.name)
        raise BadModelFile(f"{where}: {view.segment.name} {culprit} has weights that are NaN or infinite",
                           "the file is damaged: fetch or convert it again", field=culprit)
