"""Do tokens of a generated mixture of experts go where their law says? Routers times embedding, in numpy."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from nvstreamd import ggml
from support.moe_gguf import (
    DRIFTING,
    STRETCH,
    TOPICS,
    UNIFORM,
    ZIPF,
    Law,
    chances,
    ranked,
    tokens,
    topic_ids,
    write_routed,
)
from support.random_gguf import Options
from support.shapes import Shape
from support.vocabularies import synthetic_vocabulary

SHAPE = Shape("qwen3moe", 2, 256, 4, 2, 64, 32, experts=64, used=4)
EACH, SEED = 1536, 5
VOCABULARY = EACH * TOPICS
Tensors = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The tensors of a model with two layers, by name, as what is in the file says."""
    path = tmp_path_factory.mktemp("moe") / "model.gguf"
    write_routed(path, SHAPE, Options(type=ggml.Q4_0, seed=SEED, vocabulary=synthetic_vocabulary(VOCABULARY)))
    return {tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
            for tensor in gguf.GGUFReader(path).tensors}


def counts_of(tensors: Tensors, layer: int, topic: int) -> npt.NDArray[np.int64]:
    """How many tokens of a topic want each expert of a layer, where nothing was added to their embedding."""
    x = tensors["token_embd.weight"][topic_ids(topic, VOCABULARY)]
    x = x / np.sqrt((x * x).mean(axis=1, keepdims=True)) * tensors[f"blk.{layer}.ffn_norm.weight"]
    scores = x @ tensors[f"blk.{layer}.ffn_gate_inp.weight"].T
    chosen = np.argpartition(scores, -SHAPE.used, axis=1)[:, -SHAPE.used :]
    return np.bincount(chosen.reshape(-1), minlength=SHAPE.experts)


@pytest.mark.parametrize("layer", range(SHAPE.layers))
def test_a_uniform_topic_wants_all_experts_alike(tensors: Tensors, layer: int) -> None:
    counts = counts_of(tensors, layer, UNIFORM)
    expected = EACH * SHAPE.used / SHAPE.experts
    # As uneven as chance makes it, and little more: chi squared per degree of freedom.
    assert ((counts - expected) ** 2 / expected).mean() < 1.8


@pytest.mark.parametrize("layer", range(SHAPE.layers))
@pytest.mark.parametrize("topic", [ZIPF, DRIFTING[0], DRIFTING[-1]])
def test_another_topic_wants_them_by_zipfs_law_in_an_order_of_its_own(tensors: Tensors, layer: int, topic: int) -> None:
    by_rank = counts_of(tensors, layer, topic)[ranked(layer, topic, SHAPE.experts, SEED)]
    expected = EACH * chances(SHAPE.experts, SHAPE.used)
    assert np.abs(by_rank - expected).sum() / expected.sum() < 0.13
    # What is left is chance. Beyond the first ranks, which every token wants, the chance falls as 1/r does.
    ranks = np.arange(4, 49)
    slope = np.polyfit(np.log(ranks), np.log(by_rank[ranks - 1] + 1), 1)[0]
    assert -1.15 < slope < -0.8


def test_topics_share_no_order(tensors: Tensors) -> None:
    orders = {tuple(ranked(layer, topic, SHAPE.experts, SEED)[:4])
              for layer in range(SHAPE.layers) for topic in (ZIPF, *DRIFTING)}
    assert len(orders) == SHAPE.layers * (TOPICS - 1)


def test_chances_are_those_of_drawing_without_replacement() -> None:
    rng, experts, used = np.random.default_rng(1), 128, 8
    # The clocks of the race, drawn: who ticks first.
    clocks = rng.exponential(size=(20_000, experts)) * np.arange(1, experts + 1)
    drawn = np.bincount(np.argpartition(clocks, used, axis=1)[:, :used].reshape(-1), minlength=experts) / len(clocks)
    assert np.abs(drawn - chances(experts, used)).max() < 0.03


def test_what_layers_add_is_small_beside_the_token(tensors: Tensors) -> None:
    usual = {"attn_output": (SHAPE.heads * SHAPE.head_dim) ** -0.5, "ffn_down_exps": SHAPE.feed_forward**-0.5}
    for name, spread in usual.items():
        assert tensors[f"blk.0.{name}.weight"].std() == pytest.approx(0.02 * spread, rel=0.1)
    assert tensors["token_embd.weight"].std() > 0.9


def test_tokens_follow_their_law() -> None:
    assert set(tokens(Law.UNIFORM, 500, 1, VOCABULARY)) <= set(topic_ids(UNIFORM, VOCABULARY))
    assert set(tokens(Law.ZIPF, 500, 1, VOCABULARY)) <= set(topic_ids(ZIPF, VOCABULARY))
    drifting = [token // EACH for token in tokens(Law.DRIFT, 3 * STRETCH, 1, VOCABULARY, passed=50)]
    stretches = [set(drifting[: STRETCH - 50]), set(drifting[STRETCH - 50 : 2 * STRETCH - 50])]
    assert [len(stretch) for stretch in stretches] == [1, 1] and stretches[0] != stretches[1]
    assert set(drifting) <= set(DRIFTING)
    assert tokens(Law.DRIFT, 300, 7, VOCABULARY) == tokens(Law.DRIFT, 300, 7, VOCABULARY)
    assert tokens(Law.DRIFT, 300, 7, VOCABULARY) != tokens(Law.DRIFT, 300, 8, VOCABULARY)
