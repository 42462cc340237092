"""Is the answer right? Perplexity beside llama.cpp's, and the distance from a float32 evaluation of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Loaded
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.engine.tokenizer import load as load_tokenizer
from nvstreamd.weights.files import open_all
from support.files import SMOLLM2
from support.llamacpp import LlamaCpp
from support.our_logits import Logits, every_position, loaded

pytestmark = pytest.mark.slow

WINDOW = 512
WINDOWS = 16
KL_WINDOWS = 2
MIB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with ExitStack() as stack:
        return load_tokenizer(read_model(open_all([SMOLLM2], stack)).manifest.metadata)


@pytest.fixture(scope="module")
def windows(tokenizer: Tokenizer) -> list[list[int]]:
    """Python's own reference manual, 16 windows of 512 tokens."""
    text = "\n".join(topics[name] for name in sorted(topics))[: 16 * WINDOW * WINDOWS]
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert len(ids) >= WINDOW * WINDOWS
    return [ids[begin : begin + WINDOW] for begin in range(0, WINDOW * WINDOWS, WINDOW)]


@pytest.fixture
def model(kernel: str) -> Iterator[Loaded]:
    """SmolLM2 in service."""
    with loaded([SMOLLM2], 2, 200 * MIB, kernel) as found:
        yield found


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log probabilities in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return result


def surprise(logits: Logits, following: list[int]) -> float:
    """Sum of -log p of each position's next token."""
    return -float(log_softmax(logits[: len(following)])[np.arange(len(following)), following].sum())


@pytest.mark.parametrize("kernel", ["cpu"])
def test_perplexity_is_llamacpps(model: Loaded, windows: list[list[int]]) -> None:
    ours = theirs = 0.0
    with LlamaCpp(SMOLLM2) as peer:
        for ids in windows:
            ours += surprise(every_position(model, ids), ids[1:])
            theirs += surprise(peer.logits(ids, n_ctx=WINDOW, threads=2), ids[1:])
    count = sum(len(ids) - 1 for ids in windows)
    ratio = np.exp((ours - theirs) / count)
    assert abs(ratio - 1) < 0.005, f"perplexity {np.exp(ours / count):.4f}, llama.cpp {np.exp(theirs / count):.4f}"


@pytest.fixture(scope="module")
def float32_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, every tensor as float32."""
    path = tmp_path_factory.mktemp("float32") / "smollm2-f32.gguf"
    reader = gguf.GGUFReader(SMOLLM2)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divergence(ours: Logits, reference: Logits) -> float:
    """Mean KL divergence of our distributions from the reference's, in nats."""
    wanted = log_softmax(reference)
    return float((np.exp(wanted) * (wanted - log_softmax(ours))).sum(axis=1).mean())


@pytest.mark.parametrize("kernel", ["cpu", "torch"])
def test_divergence_from_float32_is_small(model: Loaded, windows: list[list[int]], float32_file: Path) -> None:
    """And no larger than llama.cpp's on the same file, which rounds activations as the C++ kernels do."""
    ours, theirs = [], []
    with LlamaCpp(float32_file) as exact, LlamaCpp(SMOLLM2) as peer:
        for ids in windows[:KL_WINDOWS]:
            reference = exact.logits(ids, n_ctx=WINDOW, threads=2)
            ours.append(divergence(every_position(model, ids), reference))
            theirs.append(divergence(peer.logits(ids, n_ctx=WINDOW, threads=2), reference))
    assert np.mean(ours) < 0.01
    assert np.mean(ours) < 1.1 * np.mean(theirs), f"ours {np.mean(ours):.5f}, llama.cpp {np.mean(theirs):.5f}"
