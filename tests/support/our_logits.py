"""What does our own engine answer, without a daemon? A model file in, the logits of every position out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvstreamd.engine.describe import read_model
from nvstreamd.engine.kv_cache import SequencePages, Table
from nvstreamd.engine.load import Loaded, Wishes, load
from nvstreamd.engine.output import Output
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.scheduler import Work
from nvstreamd.engine.tokenizer import Detokenizer
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.weights.packed.files import open_all

Logits = npt.NDArray[np.float32]

MIB = 1 << 20


@contextmanager
def loaded(files: Sequence[Path], threads: int = 1, budget: int = 64 * MIB, kernel: str = "cpu") -> Iterator[Loaded]:
    """A model in service."""
    with ExitStack() as stack:
        model = read_model(open_all(list(files), stack))
        yield load(model, Wishes(budget + 64 * MIB, budget, 64 * MIB, 1, ("pread",), (kernel,), threads), stack)


def sequence(model: Loaded, tokens: Sequence[int], pages: Sequence[int]) -> Request:
    """A request whose tokens are all known; it ends only when the test says so."""
    silent = Output(Detokenizer(lambda token: b""), ())
    return Request(0, 0, list(tokens), len(tokens), 1 << 20, 1, Sampling(), silent,
                   kept=SequencePages([Table(list(pages)) for _ in model.runner.model.kv]))


def first_pages(count: int, begin: int = 0) -> list[int]:
    """The pages from `begin` on that `count` tokens take."""
    return list(range(begin, begin - (-count // PAGE_TOKENS)))


def every_position(model: Loaded, tokens: Sequence[int]) -> Logits:
    """Logits [positions, vocabulary]: each row is the last of a request that ends there, all over the same pages."""
    pages = first_pages(len(tokens))
    work = [Work(sequence(model, tokens[: end + 1], pages), end, 1) for end in range(len(tokens))]
    return model.runner.run(work).scores
