"""Which steps of a program go to the processor beside a card, and which values cross between the two?

Products are all that weights are read for: those go to the processor, where the weights lie. What reads keys and values
stays on the card, which keeps them; so do the router and what brings experts' parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nvstreamd.program import (
    Add,
    AddNormed,
    Attend,
    Expert,
    Gated,
    Mix,
    Program,
    Project,
    Route,
    Score,
    Step,
    Value,
)


@dataclass(frozen=True, slots=True)
class Part:
    """Steps that one of the two runs, one behind the other: the values they read that are not their own, by id what
    they leave behind."""

    on_host: bool
    steps: tuple[Step, ...]
    reads: tuple[Value, ...]
    writes: frozenset[int]


def split(program: Program) -> tuple[Part, ...]:
    """The parts of a program, in order."""
    return tuple(part(tuple(steps), on_host=on_host) for on_host, steps in groupby(program.steps, _is_product))


def part(steps: Sequence[Step], *, on_host: bool) -> Part:
    """These steps as a part."""
    wanted: dict[int, Value] = {}
    written: set[int] = set()
    for step in steps:
        reads, writes = _reads(step), _writes(step)
        wanted.update({value.id: value for value in reads if value.id not in written | wanted.keys()})
        written |= {value.id for value in writes}
    return Part(on_host, tuple(steps), tuple(wanted.values()), frozenset(written))


def _is_product(step: Step) -> bool:
    return isinstance(step, Project | Gated | Add | AddNormed)


def _reads(step: Step) -> tuple[Value, ...]:
    match step:
        case Add() | AddNormed():
            return step.x, step.h
        case Attend():
            return step.q, step.k, step.v
        case Expert():
            return (step.h,)
        case Mix():
            return step.x, step.weights, step.parts
        case Project() | Gated() | Score() | Route():
            return (step.x,)


def _writes(step: Step) -> tuple[Value, ...]:
    match step:
        case Project():
            return step.out
        case Gated():
            return (step.out,)
        case Add() | AddNormed() | Mix():
            return (step.x,)
        case Attend():
            # What is turned is turned in place.
            return step.q, step.k, step.v, step.out
        case Route():
            return step.h, step.weights
        case Expert():
            return (step.parts,)
        case Score():
            return ()
