"""What do the tokenizer tests compare? Our tokenizer and llama.cpp's, made from the same metadata."""

from __future__ import annotations

from collections.abc import Callable

from nvstreamd.engine.tokenizer import Tokenizer
from support.llamacpp import LlamaCpp

G = "tokenizer.ggml."
Pair = tuple[Tokenizer, LlamaCpp]
MakePair = Callable[[dict[str, object]], Pair]
