"""How long would a pass take at best in a box? By the bytes that it needs alone, in whatever order and pieces."""

from __future__ import annotations

from dataclasses import dataclass

from support.boxes.box import Box

STEPS = 400


@dataclass(frozen=True, slots=True)
class Pass:
    """`dense` bytes that every row needs, of which `own` rest in VRAM.

    The products of its experts take so many `expert_seconds` where they lie, of which the processor multiplies
    `expert_bytes`; `missed` bytes of them are in no memory.
    """

    rows: int
    dense: int
    own: int
    expert_seconds: float
    expert_bytes: float
    missed: int


def least_seconds(box: Box, of: Pass) -> float:
    """The busiest of drive, link, RAM, and card and processor in turn decides, at the best division of the work.

    What does not rest in VRAM comes over the link, or the processor multiplies it. What has no room in RAM, either,
    comes off the drive, and into RAM first. Experts are multiplied where they lie.
    """
    outside = of.dense - of.own
    streamed = max(0.0, outside - box.ram)
    read = streamed + of.missed
    best = float("inf")
    for step in range(STEPS + 1):
        on_host = (outside - streamed) * step / STEPS
        turns = (of.dense - on_host) / box.card(of.rows) + on_host / box.host(of.rows)
        best = min(best, max(read / box.drive, (outside - on_host) / box.link, turns + of.expert_seconds,
                             (outside + read + of.expert_bytes) / box.memory))
    return best
