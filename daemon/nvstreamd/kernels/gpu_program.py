"""What does a card keep of a program, or of a layer's experts, between passes?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvstreamd.kernels.gpu_form import Form, Placed
from nvstreamd.program import Expert, Step


@dataclass(frozen=True, slots=True, eq=False)
class GpuProgram:
    """The steps of a program, and how its weights lie in VRAM.

    Where it is a part of a stage whose hidden state others go on with, nobody `looks` for NaN behind it.
    """

    steps: tuple[Step, ...]
    form: Form
    looks: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class GpuExperts:
    """All experts of a layer: what one computes, how it lies in VRAM, where the table of `count` addresses is."""

    step: Expert
    form: Mapping[str, Placed]
    table: int
    count: int
