"""Which models are simulated? Headers of real shapes, behind which a file is nothing but holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from support.random_gguf import Options, write
from support.shapes import SHAPE_8B, SHAPE_30B_A3B, Shape
from support.vocabularies import synthetic_vocabulary

# Their configurations, as their makers publish them: Llama 3.1 8B and 70B, Qwen3 32B, 30B-A3B and 235B-A22B.
LLAMA_70B = Shape("llama", 80, 8192, 64, 8, 128, 28672, 131072, 500000.0)
QWEN_32B = Shape("qwen3", 64, 5120, 64, 8, 128, 25600, 40960, 1000000.0)
QWEN_235B_A22B = Shape("qwen3moe", 94, 4096, 64, 4, 128, 1536, 40960, 1000000.0, experts=128, used=8)
MODELS: dict[str, tuple[Shape, int]] = {
    "8B": (SHAPE_8B["llama"], 128256),
    "32B": (QWEN_32B, 151936),
    "70B": (LLAMA_70B, 128256),
    "30B-A3B": (SHAPE_30B_A3B["qwen3moe"], 151936),
    "235B-A22B": (QWEN_235B_A22B, 151936),
}


class Holes:
    """The bytes of tensors that nobody reads."""

    def content(self, name: str, kind: GgmlType, shape: tuple[int, ...], rope_freqs: Sequence[float]
                ) -> Iterator[memoryview]:
        """None: the file has been made as long as it has to be."""
        return iter(())


def q4_k_m(layers: int) -> dict[str, GgmlType]:
    """The types of a Q4_K_M: Q6_K for the head, and for values and the second half of every other layer or so."""
    types = {"output.weight": ggml.Q6_K}
    for layer in range(layers):
        if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2:
            types |= {f"blk.{layer}.attn_v.weight": ggml.Q6_K, f"blk.{layer}.ffn_down*.weight": ggml.Q6_K}
    return types


def written(name: str, home: Path) -> Path:
    """A model in Q4_K_M, which takes no room on the disk."""
    shape, tokens = MODELS[name]
    path = home / f"{name}.gguf"
    options = Options(type=ggml.Q4_K, types=q4_k_m(shape.layers), vocabulary=synthetic_vocabulary(tokens))
    write(path, shape, options, Holes())
    return path
