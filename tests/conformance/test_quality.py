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
import torch

from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Loaded, Wishes, load
from nvstreamd.engine.output import Output
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.scheduler import Work
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.engine.tokenizer import load as load_tokenizer
from nvstreamd.kernels.torch_attention import PAGE_TOKENS
from nvstreamd.weights.files import open_all
from support.files import SMOLLM2
from support.llamacpp import LlamaCpp

pytestmark = pytest.mark.slow

WINDOW = 512
WINDOWS = 16
KL_WINDOWS = 2
ROWS = 128
MIB = 1 << 20
Logits = npt.NDArray[np.float32]


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


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    torch.set_grad_enabled(False)
    with ExitStack() as stack:
        model = read_model(open_all([SMOLLM2], stack))
        yield load(model, Wishes(200 * MIB, 64 * MIB, ("pread",), 2), stack)


def our_logits(loaded: Loaded, tokenizer: Tokenizer, ids: list[int]) -> Iterator[Logits]:
    """Logits of every position, in blocks: each row is the last of a request that ends there."""
    pages = list(range(-(-len(ids) // PAGE_TOKENS)))
    for begin in range(0, len(ids), ROWS):
        requests = [
            Request(number, 0, ids[: number + 1], 1, WINDOW + 1, 1, Sampling(), Output(tokenizer.detokenizer(), ()),
                    pages=pages)
            for number in range(begin, min(begin + ROWS, len(ids)))
        ]
        yield loaded.runner.run([Work(request, request.id, 1) for request in requests]).numpy()


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log probabilities in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return result


def surprise(logits: Logits, following: list[int]) -> float:
    """Sum of -log p of each position's next token."""
    return -float(log_softmax(logits[: len(following)])[np.arange(len(following)), following].sum())


def test_perplexity_is_llamacpps(loaded: Loaded, tokenizer: Tokenizer, windows: list[list[int]]) -> None:
    ours = theirs = 0.0
    with LlamaCpp(SMOLLM2) as peer:
        for ids in windows:
            blocks = list(our_logits(loaded, tokenizer, ids))
            ours += surprise(np.concatenate(blocks), ids[1:])
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


def test_divergence_from_float32_is_small(loaded: Loaded, tokenizer: Tokenizer, windows: list[list[int]],
                                          float32_file: Path) -> None:
    divergences = []
    with LlamaCpp(float32_file) as exact:
        for ids in windows[:KL_WINDOWS]:
            ours = log_softmax(np.concatenate(list(our_logits(loaded, tokenizer, ids))))
            reference = log_softmax(exact.logits(ids, n_ctx=WINDOW, threads=2))
            divergences.append((np.exp(reference) * (reference - ours)).sum(axis=1))
    mean = float(np.concatenate(divergences).mean())
    assert mean < 0.01
