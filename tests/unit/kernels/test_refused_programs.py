"""Does every device refuse a pass or a program that does not fit what it has? A kernel would read past it, or write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.errors import KernelError
from nvstreamd.kernels.rows import PAGE_TOKENS, Rows, Stretch
from nvstreamd.program import Attend, Heads, Matrix, Norm, Program, Project, Rope, Score, Step, Value
from unit.kernels import rig
from unit.kernels.rig import activations, random_weight


@pytest.mark.parametrize(("pages", "tokens", "message"), [
    ([-1], 1, "page -1"), ([4], 1, "page 4"), ([0], PAGE_TOKENS + 1, "33 tokens in 1 pages")])
@pytest.mark.parametrize("device", rig.every_device())
def test_pages_that_are_not_there_are_refused(device: str, pages: list[int], tokens: int, message: str) -> None:
    """C++ would write behind the cache, or read the next sequence's pages."""
    with rig.every_device()[device](1) as opened, pytest.raises(KernelError, match=message):
        rig.begin(opened, activations(tokens, 32), Rows([Stretch(0, tokens, 0, [pages])], []), pages=4)


@pytest.mark.parametrize("device", rig.every_device())
def test_embedding_rows_that_are_not_the_passes_are_refused(device: str) -> None:
    with rig.every_device()[device](1) as opened, pytest.raises(KernelError, match="3 embedding rows for 2"):
        rig.begin(opened, activations(3, 32), rig.alone(2))


@pytest.mark.parametrize("device", rig.every_device())
def test_a_program_that_wants_what_its_weights_do_not_have_is_refused(device: str) -> None:
    with rig.every_device()[device](1) as opened:
        rig.begin(opened, activations(1, 32), rig.alone(1))
        step = Project(Value(0, 32), None, (Matrix("absent", 8, 32),), (Value(1, 8),))
        with pytest.raises(KernelError, match="absent"):
            opened.prepare(Program((step,)), {})


MISFITS: dict[str, Callable[[rig.Packed], Step]] = {
    "a matrix of more rows than there are": lambda packed: Project(
        Value(0, 32), None, (replace(packed.matrix("w", random_weight(ggml.Q8_0, 8, 32)), rows=9),), (Value(1, 9),)),
    "a matrix wider than its activations": lambda packed: Project(
        Value(0, 32), None, (packed.matrix("w", random_weight(ggml.Q8_0, 8, 64)),), (Value(1, 8),)),
    "a result narrower than its matrix": lambda packed: Project(
        Value(0, 32), None, (packed.matrix("w", random_weight(ggml.Q8_0, 8, 32)),), (Value(1, 7),)),
    "a norm shorter than its rows": lambda packed: Project(
        Value(0, 32), Norm(packed.vector("norm", np.ones(31, np.float32)), 1e-5),
        (packed.matrix("w", random_weight(ggml.Q8_0, 8, 32)),), (Value(1, 8),)),
    "a piece that ends behind the scores": lambda packed: Score(
        Value(0, 32), Norm(packed.vector("norm", np.ones(32, np.float32)), 1e-5),
        packed.matrix("w", random_weight(ggml.Q8_0, 1, 32)), 1),
    "a layer that the cache does not have": lambda packed: Attend(
        Value(1, 2), Value(2, 2), Value(3, 2), Value(4, 2), Heads(1, 1, 2), Rope(2, 1e4, 1.0, True), None, 0, 1),
    "a group that the model does not have": lambda packed: Attend(
        Value(1, 2), Value(2, 2), Value(3, 2), Value(4, 2), Heads(1, 1, 2), Rope(2, 1e4, 1.0, True), None, 1, 0),
}


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("device", rig.every_device())
def test_a_program_whose_sizes_do_not_fit_is_refused(device: str, what: str) -> None:
    """A kernel would read past a tensor, or write past a value."""
    packed = rig.Packed()
    step = MISFITS[what](packed)
    with rig.every_device()[device](1) as opened:
        rig.begin(opened, activations(1, 32), rig.alone(1))
        with pytest.raises(KernelError):
            opened.prepare(Program((step,)), packed.tensors)
