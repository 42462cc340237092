"""Does every device compute the bits of kernels/ARITHMETIC.md? (What moving to another machine rests on.)

To write the vectors anew after a change of the page: python -m unit.kernels.test_arithmetic (PYTHONPATH=tests).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.rows import PAGE_TOKENS, Stretch
from nvstreamd.program import (
    Activation,
    Add,
    AddNormed,
    Attend,
    Gated,
    Heads,
    KvGroup,
    Norm,
    Project,
    Rope,
    Step,
    Value,
)
from support import arithmetic
from support.arithmetic import F, numbers
from unit.kernels import rig, test_experts
from unit.kernels.rig import Attention, Packed, Weight, activations, every_device, product, random_weight

VECTORS = Path(__file__).parents[2] / "fixtures/arithmetic.json"
KINDS = {"Q4_0": ggml.Q4_0, "Q8_0": ggml.Q8_0, "Q4_K": ggml.Q4_K, "Q6_K": ggml.Q6_K}
COLUMNS, ROWS, DIM = 512, 2, 8
# A head as Llama 3's, of a long text, its positions scaled.
TURNED, POSITION, BASE, SCALE = 128, 100_003, 5e5, 0.125
EPSILON = 1e-5
# A norm whose columns fill no 32 strands, and a sequence that ends inside a page of its third chunk.
NORMED, TOKENS = 83, 530
HEADS, ROPE = Heads(1, 1, DIM), Rope(DIM, 10000.0, 1.0, interleaved=False)
GATES = {"gate": Activation.SILU, "gelu": Activation.GELU}
# It begins inside a page of the first chunk.
WINDOWS = {"attention": None, "window": 300}
DEVICES = every_device() | {"hybrid": rig.hybrid}


def drawn(seed: int, *shape: int) -> Floats:
    """Numbers of section 8 as an array."""
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
    if name == "angles":
        cos, sin = arithmetic.angles(TURNED, BASE, POSITION, SCALE)
        return [*cos, *sin]
    if name in WINDOWS:
        positions = [arithmetic.angles(DIM, 10000.0, t) for t in range(TOKENS)]
        q, k, v = (drawn(seed, TOKENS, DIM) * F(4) for seed in (5, 6, 7))
        turned = [arithmetic.turn(k[t], *positions[t]) for t in range(TOKENS)]
        keys, values = (np.array(x, np.float32).astype(np.float16).astype(np.float32) for x in (turned, v))
        return arithmetic.attend(arithmetic.turn(q[-1], *positions[-1]), list(keys), list(values),
                                 TOKENS - (WINDOWS[name] or TOKENS))
    if name in GATES:
        own = arithmetic.gelu_gate if GATES[name] is Activation.GELU else arithmetic.gate
        return [own(g, u) for g, u in zip(by_oracle("Q4_0"), by_oracle("Q8_0"), strict=True)]
    raw = weight_of(name).data.tobytes()
    size = len(raw) // ROWS
    x = numbers(8, COLUMNS)
    if name in ("Q4_0", "Q8_0"):
        x = arithmetic.rms_norm(x, numbers(9, COLUMNS), F(EPSILON))
    return [arithmetic.quantised_product(name, raw[at : at + size], x) for at in (0, size)]


def by_device(device: Device, name: str) -> Floats:
    """What a device makes of it."""
    if name == "norm":
        return rig.rms_norm(device, drawn(1, 1, NORMED), drawn(2, NORMED), EPSILON)[0]
    if name == "F32":
        weight = Weight(ggml.F32, ROWS, NORMED, drawn(3, ROWS, NORMED).view(np.uint8).ravel())
        return product(device, drawn(4, 1, NORMED), weight)[0]
    if name == "angles":
        return turned(device)
    if name in WINDOWS:
        x = np.concatenate([drawn(seed, TOKENS, DIM) * F(4) for seed in (5, 6, 7)], axis=1)
        same = np.eye(3 * DIM, dtype=np.float32).reshape(3, DIM * 3 * DIM)
        own = Attention.of(HEADS, ROPE, [Weight(ggml.F32, DIM, 3 * DIM, part.view(np.uint8)) for part in same],
                           window=WINDOWS[name])
        return own.attend(device, own.open(device, 17), x, rig.alone(TOKENS).stretches)[-1]
    x, norm = drawn(8, 1, COLUMNS), drawn(9, COLUMNS)
    if name in GATES:
        return rig.gated(device, x, norm, EPSILON, weight_of("Q4_0"), weight_of("Q8_0"), GATES[name])[0]
    if name in ("Q4_0", "Q8_0"):
        return rig.project(device, x, norm, EPSILON, [weight_of(name)])[0][0]
    return product(device, x, weight_of(name))[0]


def turned(device: Device) -> Floats:
    """A query whose pairs are all (1, 0), turned: the cosines, then the sines."""
    heads, rope = Heads(1, 1, TURNED), Rope(TURNED, BASE, SCALE, interleaved=False)
    x = np.zeros((1, TURNED), np.float32)
    x[0, : TURNED // 2] = 1
    own = Attention.of(heads, rope, [rig.identity(TURNED)] * 3)
    pages = range(POSITION // PAGE_TOKENS + 1)
    own.attend(device, own.open(device, len(pages)), x, [Stretch(0, 1, POSITION, [pages])])
    return device.peek(Value(1, TURNED))[0]


NAMES = ("norm", "F32", *KINDS, *GATES, "angles", *WINDOWS)


def in_hexadecimal(found: Floats | list[F]) -> str:
    """The bits of binary32 numbers, little-endian."""
    return np.array(found, "<f4").tobytes().hex()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_devices_reproduce_the_vectors(device: str, name: str) -> None:
    with DEVICES[device](1) as opened:
        assert in_hexadecimal(by_device(opened, name)) == json.loads(VECTORS.read_text())["results"][name]


@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_are_what_the_page_says(name: str) -> None:
    assert in_hexadecimal(by_oracle(name)) == json.loads(VECTORS.read_text())["results"][name]


WIDTH, FEED = 384, 1024
TALL_HEADS = Heads(6, 2, 64)


def layer(packed: Packed, number: int, group: int) -> list[Step]:
    """A layer of a decoder: every operation there is, each upon the last, seven types of weights."""
    x, q, k, v, mixed, h, y = (Value(id, columns) for id, columns in enumerate(
        (WIDTH, 384, 128, 128, 384, FEED, WIDTH)))
    norm = Norm(packed.vector("norm", 1 + activations(1, WIDTH, 3)[0] / 8), EPSILON)
    head_norms = [Norm(packed.vector(f"norm{seed}", 1 + activations(1, 64, seed)[0] / 8, kind), EPSILON)
                  for seed, kind in ((4, ggml.F32), (5, ggml.F16))]
    parts = [(q, ggml.Q4_0), (k, ggml.Q8_0), (v, ggml.F16)]
    biased = [replace(random_weight(kind, out.columns, WIDTH, seed), bias=activations(1, out.columns, seed)[0])
              for seed, (out, kind) in enumerate(parts)]
    matrices = tuple(packed.matrix(f"w{seed}", weight) for seed, weight in enumerate(biased))
    return [
        Project(x, norm, matrices, (q, k, v)),
        Attend(q, k, v, mixed, TALL_HEADS, rig.rope_of(TALL_HEADS), (head_norms[0], head_norms[1]), group, number,
               scale=0.2 if group else None),
        Add(x, mixed, packed.matrix("output", random_weight(ggml.Q5_1, WIDTH, 384, 7))),
        Gated(x, norm, packed.matrix("gate", random_weight(ggml.Q4_1, FEED, WIDTH, 8)),
              packed.matrix("up", random_weight(ggml.IQ4_NL, FEED, WIDTH, 9)), h,
              Activation.GELU if group else Activation.SILU),
        Project(h, None, (packed.matrix("down", random_weight(ggml.Q6_K, WIDTH, FEED, 10)),), (y,)),
        AddNormed(x, y, norm),
    ]


@pytest.mark.parametrize("tokens", [40, pytest.param(300, marks=pytest.mark.thorough)])
def test_whole_layers_have_the_same_bits_on_every_device(tokens: int) -> None:
    """Layers, with 300 tokens past the end of a chunk: one bit that differs early would be in all of it.

    Two see every token, two the last 40, which begin and end within pages.
    """
    found = {}
    groups = tuple(KvGroup(2, TALL_HEADS.keys, TALL_HEADS.dim, window) for window in (None, 40))
    for name, device in DEVICES.items():
        packed = Packed()
        steps = [step for number in range(4) for step in layer(packed, number // 2, number % 2)]
        with device(2) as opened:
            rig.run(opened, activations(tokens, WIDTH), steps, packed, kv=groups)
            found[name] = opened.peek(Value(0, WIDTH))
    wanted = found.pop("torch")
    assert np.isfinite(wanted).all() and len(found) == len(rig.INSTRUCTION_SETS) + 2
    for name, other in found.items():
        assert np.array_equal(other, wanted), name


def write() -> None:
    """Writes the vectors: weights as they are, or drawn where there are none; results by the page alone."""
    kept = json.loads(VECTORS.read_text())["weights"] if VECTORS.exists() else {
        kind: random_weight(KINDS[kind], ROWS, COLUMNS).data.tobytes().hex() for kind in KINDS}
    VECTORS.write_text(json.dumps({"weights": kept, "results": {}}))
    results = {name: in_hexadecimal(by_oracle(name)) for name in NAMES}
    results |= {name: in_hexadecimal(found) for name, found in test_experts.by_page().items()}
    VECTORS.write_text(json.dumps({"weights": kept, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    write()
