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
from nvstreamd.engine.scheduler import Work
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.engine.tokenizer import load as load_tokenizer
from nvstreamd.weights.packed.files import open_all
from support.files import GEMMA3, SMOLLM2
from support.llamacpp import LlamaCpp
from support.our_logits import Logits, every_position, first_pages, loaded, sequence

pytestmark = pytest.mark.slow

WINDOW = 512
WINDOWS = 16
KL_WINDOWS = 2
MIB = 1 << 20


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"])
def real(request: pytest.FixtureRequest) -> Path:
    """A real model's file."""
    return request.param


@pytest.fixture(scope="module")
def tokenizer(real: Path) -> Tokenizer:
    with ExitStack() as stack:
        return load_tokenizer(read_model(open_all([real], stack)).manifest.metadata)


@pytest.fixture(scope="module")
def text_ids(tokenizer: Tokenizer) -> list[int]:
    """Python's own reference manual."""
    text = "\n".join(topics[name] for name in sorted(topics))[: 16 * WINDOW * WINDOWS]
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert len(ids) >= WINDOW * WINDOWS
    return ids


@pytest.fixture(scope="module")
def windows(tokenizer: Tokenizer, text_ids: list[int]) -> list[list[int]]:
    """16 windows of 512 tokens, each from the beginning of a text where the model wants that said."""
    begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = WINDOW - len(begin)
    return [begin + text_ids[at : at + step] for at in range(0, step * WINDOWS, step)]


@pytest.fixture(scope="module")
def model(real: Path) -> Iterator[Loaded]:
    """A real model in service."""
    with loaded([real], 2, 300 * MIB) as found:
        yield found


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log probabilities in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return result


def surprise(logits: Logits, following: list[int]) -> float:
    """Sum of -log p of each position's next token. Row by row: some vocabularies are large."""
    total = 0.0
    for row, token in zip(logits, following, strict=False):
        most = row.max()
        total += float(most - row[token]) + float(np.log(np.exp(row - most).sum(dtype=np.float64)))
    return total


def test_perplexity_is_llamacpps(model: Loaded, real: Path, windows: list[list[int]]) -> None:
    ours = theirs = 0.0
    with LlamaCpp(real) as peer:
        for ids in windows:
            ours += surprise(every_position(model, ids), ids[1:])
            theirs += surprise(peer.logits(ids, n_ctx=WINDOW, threads=2), ids[1:])
    count = sum(len(ids) - 1 for ids in windows)
    ratio = np.exp((ours - theirs) / count)
    assert abs(ratio - 1) < 0.005, f"perplexity {np.exp(ours / count):.4f}, llama.cpp {np.exp(theirs / count):.4f}"


@pytest.fixture(scope="module")
def float32_file(tmp_path_factory: pytest.TempPathFactory, real: Path) -> Path:
    """The same weights, every tensor as float32."""
    path = tmp_path_factory.mktemp("float32") / f"{real.stem}-f32.gguf"
    reader = gguf.GGUFReader(real)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
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


def answered(model: Loaded, prompt: list[int], tokens: int) -> tuple[list[int], Logits]:
    """The likeliest tokens that follow, one by one, and the scores [tokens, vocabulary] that they were taken from."""
    own, begin, rows = sequence(model, prompt, first_pages(len(prompt) + tokens)), 0, []
    for _ in range(tokens):
        scores = model.runner.run([Work(own, begin, len(own.tokens) - begin)]).scores[0]
        begin = len(own.tokens)
        own.tokens.append(int(scores.argmax()))
        rows.append(scores)
    return own.tokens[len(prompt) :], np.stack(rows)


def test_the_oracle_answers_with_the_same_bits(model: Loaded, real: Path, windows: list[list[int]]) -> None:
    """So what is measured of the C++ kernels here holds for every device of this arithmetic."""
    ours = answered(model, windows[0][:40], 6)
    with loaded([real], 2, 300 * MIB, "torch") as oracle:
        its = answered(oracle, windows[0][:40], 6)
        assert oracle.runner.device.arithmetic == model.runner.device.arithmetic
    assert ours[0] == its[0] and np.array_equal(ours[1], its[1])


def test_divergence_from_float32_is_small(model: Loaded, real: Path, windows: list[list[int]], float32_file: Path
                                          ) -> None:
    """And no larger than llama.cpp's on the same file, which rounds activations as the C++ kernels do."""
    ours, theirs = [], []
    with LlamaCpp(float32_file) as exact, LlamaCpp(real) as peer:
        for ids in windows[:KL_WINDOWS]:
            reference = exact.logits(ids, n_ctx=WINDOW, threads=2)
            ours.append(divergence(every_position(model, ids), reference))
            theirs.append(divergence(peer.logits(ids, n_ctx=WINDOW, threads=2), reference))
    assert np.mean(ours) < 0.01
    assert np.mean(ours) < 1.1 * np.mean(theirs), f"ours {np.mean(ours):.5f}, llama.cpp {np.mean(theirs):.5f}"


def test_a_text_longer_than_a_window_is_seen_as_llamacpp_sees_it(model: Loaded, real: Path, tokenizer: Tokenizer,
                                                                 text_ids: list[int]) -> None:
    """The last positions of 1,500 tokens: Gemma 3's windows begin at 988 there, its other layers see all of it."""
    begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = [*begin, *text_ids[: 1500 - len(begin)]]
    own = sequence(model, ids, first_pages(len(ids)))
    scores = model.runner.run([Work(own, 0, len(ids))]).scores
    with LlamaCpp(real) as peer:
        reference = peer.logits(ids, n_ctx=2048, threads=2)[-1:]
    # Both round activations, each in its way: 0.005. Without windows it would be 5.
    assert divergence(scores, reference) < 0.05
    assert scores[0].argmax() == reference[0].argmax()
