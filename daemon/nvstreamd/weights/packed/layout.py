"""Where will each byte of a packed model lie? Arithmetic alone: nothing is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nvstreamd.weights.packed.manifest import Extent, Manifest, Placed, Segment, align_up

# Tensors start on cache lines; stripes are as long as the mover's reads.
TENSOR_ALIGNMENT = 64
STRIPE = 1 << 20
# Beyond it stripes become longer, so that the manifest stays below what is read back.
MOST_STRIPES = 1 << 17


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything will lie: packed segments in pass order, the embedding, the size of each part."""

    segments: tuple[Segment, ...]
    embedding_offset: int
    part_bytes: tuple[int, ...]


def packed(segment: Segment) -> Segment:
    """The segment with its tensors one behind the other; no extents yet."""
    tensors: list[Placed] = []
    end = 0
    for placed in segment.tensors:
        offset = -(-end // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
        tensors.append(replace(placed, offset=offset))
        end = offset + placed.nbytes
    return replace(segment, tensors=tuple(tensors), nbytes=align_up(end), extents=())


def stripe_length(total: int, drives: int) -> int:
    """Bytes of a stripe when `total` bytes go to so many drives; one drive needs no stripes."""
    stripe = STRIPE
    while drives > 1 and total // stripe > MOST_STRIPES:
        stripe *= 2
    return stripe if drives > 1 else 1 << 62


def striped(segment: Segment, ends: list[int], weights: Sequence[int], stripe: int) -> Segment:
    """The segment with extents over all parts; `ends` are the parts' sizes so far, and grow.

    Each stripe goes to the drive that would have read all of its own first, so that every stretch of a pass is shared
    in proportion to `weights`.
    """
    extents: list[Extent] = []
    for target in range(0, segment.nbytes, stripe):
        length = min(stripe, segment.nbytes - target)
        drive = min(range(len(ends)), key=lambda each: (ends[each] + length) / weights[each])
        extents.append(Extent(drive, ends[drive], length, target))
        ends[drive] += length
    return replace(segment, extents=tuple(extents))


def lay_out(manifest: Manifest, weights: Sequence[int]) -> Layout:
    """Where each byte of the store will lie, on drives that read in proportion to `weights`. Pure."""
    drives = len(weights)
    ends = [0] * drives
    whole = [packed(segment) for segment in (manifest.constants, *manifest.segments)]
    stripe = stripe_length(sum(segment.nbytes for segment in whole), drives)
    segments = tuple(striped(segment, ends, weights, stripe) for segment in whole)
    table = manifest.embedding
    embedding_offset = ends[0]
    ends[0] += align_up(table.rows * table.type.row_bytes(table.columns))
    return Layout(segments, embedding_offset, tuple(ends))
