"""What is a mixture of experts whose routes follow a known law, in every engine alike? The law is in its weights.

A token's topic decides. Embedding rows are noise and, along a direction of its own, the token's topic; ids are divided
into as many ranges as there are topics. Rows of routers are noise and, along the same directions, how often the topic
wants the expert. What layers add to the hidden state is small beside its token, so routers of all layers see the same.

A router's scores are then unit normal noise, another for each token, layer and expert, plus an offset by the expert's
rank in an order that topic and layer have of their own. Offsets are such that an expert is among those used as often as
if they were drawn without replacement, the expert of rank r having the weight 1/r: Zipf's law with the exponent 1. One
topic has no offsets: all its experts are alike.

No real router was seen: real ones depend on the layers before, on the text, and on what they were trained to balance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from math import exp
from pathlib import Path
from statistics import NormalDist

import gguf
import numpy as np
import numpy.typing as npt

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from support.random_blocks import BlockSource
from support.random_gguf import Options, write
from support.shapes import SHAPE_30B_A3B, Shape
from support.vocabularies import real_vocabulary

Floats = npt.NDArray[np.float32]

# Of what this writes: a change of it is another file.
RECIPE = 1
TOPICS = 16
UNIFORM, ZIPF = 0, 1
DRIFTING = tuple(range(2, TOPICS))
# Tokens until the topic changes, where it drifts.
STRETCH = 200
# The spread of a topic's part of an embedding row, where the noise has 1: small beside it, as types of few bits round.
PART = 0.35
# Of what layers add to the hidden state, over what random layers would.
SMALL = {"*.attn_output.weight": 0.02, "*.ffn_down_exps.weight": 0.02}
EMBEDDING, ROUTER = "token_embd.weight", ".ffn_gate_inp.weight"


class Law(StrEnum):
    """Which experts tokens want."""

    UNIFORM = "uniform"
    ZIPF = "zipf"
    DRIFT = "drift"


def topic_ids(topic: int, vocabulary: int) -> range:
    """The token ids of a topic."""
    each = vocabulary // TOPICS
    return range(topic * each, (topic + 1) * each)


def tokens(law: Law, count: int, seed: int, vocabulary: int, passed: int = 0) -> list[int]:
    """`count` ids whose routes follow the law; of one that drifts, `passed` tokens of the first topic have passed."""
    rng = np.random.default_rng([seed, *law.encode()])
    if law is not Law.DRIFT:
        topics = [UNIFORM if law is Law.UNIFORM else ZIPF] * count
    else:
        changes = -(-(count + passed) // STRETCH)
        order = np.concatenate([rng.permutation(DRIFTING) for _ in range(-(-changes // len(DRIFTING)))])
        topics = np.repeat(order, STRETCH)[passed : passed + count].tolist()
    each = vocabulary // TOPICS
    return [topic * each + int(at) for topic, at in zip(topics, rng.integers(each, size=count), strict=True)]


def chances(experts: int, used: int) -> Floats:
    """How often an expert is among the `used`, by rank [experts].

    Drawing without replacement is a race of exponential clocks that tick at 1/r: the first `used` to tick are drawn. By
    the time that so many have, as a rule, one of rank r has with the chance 1 - exp(-time / r).
    """
    ranks = np.arange(1, experts + 1)
    low, high = 0.0, float(experts * experts)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-middle / ranks)).sum() < used else (low, middle)
    return np.asarray([1 - exp(-low / rank) for rank in ranks], np.float32)


def offsets(experts: int, used: int) -> Floats:
    """What is added to a score of unit spread, by rank [experts], for those chances: 0 for that of a uniform law."""
    normal = NormalDist()
    alike = normal.inv_cdf(used / experts)
    return np.asarray([normal.inv_cdf(float(chance)) - alike for chance in chances(experts, used)], np.float32)


def ranked(layer: int, topic: int, experts: int, seed: int) -> npt.NDArray[np.int64]:
    """The experts of a layer in the order in which a topic wants them: [experts], the one of rank 1 first."""
    return np.random.default_rng([seed, 1, layer, topic]).permutation(experts)


class RoutedBlocks:
    """The tensors of such a model: embedding and routers as above, the others random."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.seed = seed
        self._random = BlockSource(seed, SMALL)
        self._length = np.float32(PART * shape.width**0.5)
        noise = np.random.default_rng([seed, 2]).standard_normal((shape.width, TOPICS))
        # Orthonormal [topics, width].
        self._directions = np.linalg.qr(noise)[0].T.astype(np.float32)

    def content(self, name: str, kind: GgmlType, shape: tuple[int, ...], rope_freqs: Sequence[float]
                ) -> Iterator[memoryview]:
        """The bytes of one tensor, in pieces. An embedding may have any type that the package gguf quantises to."""
        if name == EMBEDDING:
            yield from self._embedding(kind, shape[0])
        elif name.endswith(ROUTER):
            yield self._router(int(name.split(".")[1])).astype("<f4").reshape(-1).view(np.uint8).data
        else:
            yield from self._random.content(name, kind, shape, rope_freqs)

    def _embedding(self, kind: GgmlType, rows: int) -> Iterator[memoryview]:
        parts = [(topic, len(topic_ids(topic, rows))) for topic in range(TOPICS)]
        # Ids behind the last topic's, where they cannot be divided.
        for topic, count in [*parts, (UNIFORM, rows % TOPICS)]:
            noise = self._noise(np.random.default_rng([self.seed, 3, topic, count]), count)
            part = noise if topic == UNIFORM else noise + self._length * self._directions[topic]
            packed = gguf.quants.quantize(part, gguf.GGMLQuantizationType[kind.name])
            yield np.ascontiguousarray(packed).reshape(-1).view(np.uint8).data

    def _router(self, layer: int) -> Floats:
        experts, used = self.shape.experts, self.shape.used
        rows = self._noise(np.random.default_rng([self.seed, 4, layer]), experts)
        # Times a row of the embedding's noise each is a unit normal number: the same chances for all.
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        by_rank = offsets(experts, used) / self._length
        for topic in (ZIPF, *DRIFTING):
            rows[ranked(layer, topic, experts, self.seed)] += by_rank[:, None] * self._directions[topic]
        return rows

    def _noise(self, rng: np.random.Generator, rows: int) -> Floats:
        """Unit normal [rows, width] but for the topics' directions, which have no part in it."""
        noise = rng.standard_normal((rows, self.shape.width), dtype=np.float32)
        return np.asarray(noise - (noise @ self._directions.T) @ self._directions, np.float32)


def write_routed(path: Path, shape: Shape, options: Options) -> None:
    """Writes a model of the family qwen3moe into one file."""
    write(path, shape, options, RoutedBlocks(shape, options.seed))


def bench_model(home: Path, layers: int) -> Path:
    """Qwen3-30B-A3B's shape with so many layers, in Q4_0, with the vocabulary of the tests' model: made once."""
    path = home / f"moe-30b-a3b-{layers}-layers-recipe-{RECIPE}.gguf"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".partial")
        shape = replace(SHAPE_30B_A3B["qwen3moe"], layers=layers)
        write_routed(scratch, shape, Options(type=ggml.Q4_0, vocabulary=real_vocabulary()))
        os.sync()
        scratch.rename(path)
    return path
