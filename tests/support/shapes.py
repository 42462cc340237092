"""Which shapes do made-up models have? Tiny ones for tests, and those of real ones for benches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyperparameters of a decoder of `family`; of gemma3, with the window of five layers in six.

    With `experts`, each of `feed_forward`, `used` of them serve a token.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int = 4096
    rope_base: float = 10000.0
    tied: bool = False
    window: int = 0
    experts: int = 0
    used: int = 0


FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "qwen3moe")
SHAPE_1B = {
    "llama": Shape("llama", 16, 2048, 32, 8, 64, 8192, 131072, 500000.0, tied=True),
    "qwen3": Shape("qwen3", 28, 2048, 16, 8, 128, 6144, 40960, 1000000.0, tied=True),
}
SHAPE_8B = {
    "llama": Shape("llama", 32, 4096, 32, 8, 128, 14336, 8192, 500000.0),
    "qwen3": Shape("qwen3", 36, 4096, 32, 8, 128, 12288, 40960, 1000000.0),
}
SHAPE_70B = {"llama": Shape("llama", 80, 8192, 64, 8, 128, 28672, 8192, 500000.0)}
# Qwen3-30B-A3B, of which a bench takes a few layers.
SHAPE_30B_A3B = {
    "qwen3moe": Shape("qwen3moe", 48, 2048, 32, 4, 128, 768, 40960, 1000000.0, experts=128, used=8),
}
PRESETS = {"1b": SHAPE_1B, "8b": SHAPE_8B, "30b-a3b": SHAPE_30B_A3B}
HEAD_NORMS = ("qwen3", "gemma3", "qwen3moe")


def tiny(family: str = "llama", width: int = 64, layers: int = 2, *, tied: bool = False) -> Shape:
    """A shape for unit tests; heads of `mistral` and `qwen3` are wider than width / heads."""
    wider = 2 if family in ("mistral", *HEAD_NORMS) else 1
    # A window that begins and ends within pages.
    window = 40 if family == "gemma3" else 0
    experts, used = (8, 3) if family == "qwen3moe" else (0, 0)
    return Shape(family, layers, width, 4, 2, width // 4 * wider, 2 * width, 512, 10000.0, tied, window, experts, used)


TINY = {family: tiny(family) for family in FAMILIES}
