"""Does every block format mean the same weights here as in the reference that ships with GGUF?"""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.kernels.dequantise import dequantise

BLOCKS = 64


def random_blocks(kind: ggml.GgmlType) -> np.ndarray:
    """Random bits; NaN and infinite scales are masked out, since NaN equals nothing."""
    raw = np.random.default_rng(7).integers(0, 256, BLOCKS * kind.block_bytes, dtype=np.uint8)
    reference = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    finite = np.isfinite(reference.reshape(BLOCKS, -1)).all(axis=1)
    assert finite.sum() > BLOCKS // 4
    return raw.reshape(BLOCKS, -1)[finite].reshape(-1)


@pytest.mark.parametrize("kind", ggml.SUPPORTED, ids=lambda kind: kind.name)
def test_weights_equal_the_reference(kind: ggml.GgmlType) -> None:
    raw = random_blocks(kind)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name]).reshape(-1)
    found = dequantise(kind, raw, kind.block_length).reshape(-1)
    np.testing.assert_array_max_ulp(found, expected.astype(np.float32), 1)
