"""Does every instruction set compute the bits of kernels/ARITHMETIC.md? (What moving to another machine rests on.)

To write the vectors anew after a change of the page: python -m unit.kernels.test_arithmetic (PYTHONPATH=tests).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.batch import PAGE_TOKENS, Batch, Cache, Floats, Heads, Span
from nvstreamd.kernels.cpu_library import InstructionSet
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.weight import Weight
from support import arithmetic
from support.arithmetic import F, numbers
from unit.kernels.rig import INSTRUCTION_SETS, activations, angles, cpu_ops, product, random_weight

VECTORS = Path(__file__).parents[2] / "fixtures/arithmetic.json"
KINDS = {"Q4_0": ggml.Q4_0, "Q8_0": ggml.Q8_0, "Q4_K": ggml.Q4_K, "Q6_K": ggml.Q6_K}
COLUMNS, ROWS, DIM = 512, 2, 8
EPSILON = 1e-5
# A norm whose columns fill no 32 strands, and a sequence that ends inside a page of its third chunk.
NORMED, TOKENS = 83, 530
HEADS = Heads(1, 1, DIM, False, EPSILON)

by_name = pytest.mark.parametrize("kernel", INSTRUCTION_SETS, ids=lambda found: found.name)


def drawn(seed: int, *shape: int) -> Floats:
    """Numbers of section 7 as an array."""
    return np.array(numbers(seed, int(np.prod(shape))), np.float32).reshape(shape)


def weight_of(kind: str) -> Weight:
    """The matrix of a vector: what the file holds."""
    raw = bytes.fromhex(json.loads(VECTORS.read_text())["weights"][kind])
    return Weight(KINDS[kind], ROWS, COLUMNS, np.frombuffer(raw, np.uint8).copy())


def by_oracle(name: str) -> list[F]:
    """What the page says the vector `name` is."""
    if name == "norm":
        return arithmetic.rms_norm(numbers(1, NORMED), numbers(2, NORMED), F(EPSILON))
    if name == "F32":
        weights, x = drawn(3, ROWS, NORMED), numbers(4, NORMED)
        return [arithmetic.float_product(list(row), x) for row in weights]
    if name == "attention":
        positions = angles(HEADS, range(TOKENS))
        q, k, v = (drawn(seed, TOKENS, DIM) * F(4) for seed in (5, 6, 7))
        turned = [arithmetic.turn(k[t], positions[0][t], positions[1][t]) for t in range(TOKENS)]
        keys, values = (np.array(x, np.float32).astype(np.float16).astype(np.float32) for x in (turned, v))
        return arithmetic.attend(arithmetic.turn(q[-1], positions[0][-1], positions[1][-1]), list(keys), list(values))
    if name == "gate":
        gates, ups = by_oracle("Q4_0"), by_oracle("Q8_0")
        return [arithmetic.gate(g, u) for g, u in zip(gates, ups, strict=True)]
    raw = weight_of(name).data.tobytes()
    size = len(raw) // ROWS
    x = numbers(8, COLUMNS)
    if name in ("Q4_0", "Q8_0"):
        x = arithmetic.rms_norm(x, numbers(9, COLUMNS), F(EPSILON))
    return [arithmetic.quantised_product(name, raw[at : at + size], x) for at in (0, size)]


def by_kernels(ops: CpuOps, name: str) -> Floats:
    """What kernels make of it."""
    if name == "norm":
        return ops.rms_norm(drawn(1, 1, NORMED), drawn(2, NORMED), EPSILON)[0]
    if name == "F32":
        weight = Weight(ggml.F32, ROWS, NORMED, drawn(3, ROWS, NORMED).view(np.uint8).ravel())
        return product(ops, drawn(4, 1, NORMED), weight)[0]
    if name == "attention":
        pages = -(-TOKENS // PAGE_TOKENS)
        cache = Cache(np.zeros((1, pages, 1, DIM, PAGE_TOKENS), np.float16),
                      np.zeros(pages * DIM * PAGE_TOKENS + 64, np.float16)[:-64].reshape(1, pages, 1, PAGE_TOKENS, DIM))
        batch = Batch([Span(0, TOKENS, 0, list(range(pages)))], *angles(HEADS, range(TOKENS)))
        qkv = [drawn(seed, TOKENS, DIM) * F(4) for seed in (5, 6, 7)]
        return ops.attention(HEADS, cache, batch).attend(0, qkv, ())[-1]
    x, norm = drawn(8, 1, COLUMNS), drawn(9, COLUMNS)
    if name == "gate":
        return ops.gated(x, norm, EPSILON, weight_of("Q4_0"), weight_of("Q8_0"))[0]
    if name in ("Q4_0", "Q8_0"):
        return ops.project(x, norm, EPSILON, [weight_of(name)])[0][0]
    return product(ops, x, weight_of(name))[0]


NAMES = ("norm", "F32", *KINDS, "gate", "attention")


def in_hexadecimal(found: Floats | list[F]) -> str:
    """The bits of binary32 numbers, little-endian."""
    return np.array(found, "<f4").tobytes().hex()


@by_name
@pytest.mark.parametrize("name", NAMES)
def test_kernels_reproduce_the_vectors(kernel: InstructionSet, name: str) -> None:
    with cpu_ops(kernel) as ops:
        assert in_hexadecimal(by_kernels(ops, name)) == json.loads(VECTORS.read_text())["results"][name]


@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_are_what_the_page_says(name: str) -> None:
    assert in_hexadecimal(by_oracle(name)) == json.loads(VECTORS.read_text())["results"][name]


def layer(ops: CpuOps, x: Floats, tokens: int) -> Floats:
    """A layer of a decoder over `tokens` rows of one sequence: every operation there is, each upon the last."""
    heads = Heads(6, 2, 64, True, EPSILON)
    width, feed = 384, 1024
    pages = -(-tokens // PAGE_TOKENS)
    keys = np.zeros((1, pages, heads.keys, heads.dim, PAGE_TOKENS), np.float16)
    values = np.zeros(keys.size + 64, np.float16)[: keys.size].reshape(1, pages, heads.keys, PAGE_TOKENS, heads.dim)
    norm = 1 + activations(1, width, 3)[0] / 8
    qkv = ops.project(x, norm, EPSILON, [random_weight(kind, rows, width, seed) for seed, (kind, rows) in enumerate(
        [(ggml.Q4_0, 384), (ggml.Q8_0, 128), (ggml.F16, 128)])])
    batch = Batch([Span(0, tokens, 0, list(range(pages)))], *angles(heads, range(tokens)))
    head_norms = [1 + activations(1, heads.dim, seed)[0] / 8 for seed in (4, 5)]
    mixed = ops.attention(heads, Cache(keys, values), batch).attend(0, qkv, head_norms)
    ops.add_linear(x, mixed, random_weight(ggml.Q5_1, width, 384, 7))
    hidden = ops.gated(x, norm, EPSILON, random_weight(ggml.Q4_1, feed, width, 8),
                       random_weight(ggml.IQ4_NL, feed, width, 9))
    ops.add_linear(x, hidden, random_weight(ggml.Q6_K, width, feed, 10))
    return x


def test_whole_layers_have_the_same_bits_on_every_instruction_set() -> None:
    """Three layers of 300 tokens, so past the end of a chunk: one bit that differs early would be in all of it."""
    found = []
    for kernel in INSTRUCTION_SETS:
        with cpu_ops(kernel, 2) as ops:
            x = activations(300, 384)
            for _ in range(3):
                x = layer(ops, x, 300)
            found.append(x)
    assert np.isfinite(found[0]).all()
    for kernel, other in zip(INSTRUCTION_SETS[1:], found[1:], strict=True):
        assert np.array_equal(other, found[0]), kernel.name


def write() -> None:
    """Writes the vectors: weights as they are, or drawn where there are none; results by the page alone."""
    kept = json.loads(VECTORS.read_text())["weights"] if VECTORS.exists() else {
        kind: random_weight(KINDS[kind], ROWS, COLUMNS).data.tobytes().hex() for kind in KINDS}
    VECTORS.write_text(json.dumps({"weights": kept, "results": {}}))
    results = {name: in_hexadecimal(by_oracle(name)) for name in NAMES}
    VECTORS.write_text(json.dumps({"weights": kept, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    write()
