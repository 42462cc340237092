"""How does a unit test get a request without a tokenizer or a model behind it?"""

from __future__ import annotations

from collections.abc import Sequence

from nvstreamd.engine.output import Output
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.tokenizer import Detokenizer


def silent() -> Output:
    """An output whose tokens have no text."""
    return Output(Detokenizer(lambda token: b""), ())


def request(number: int, prompt: Sequence[int], *, uid: int = 0, limit: int = 64, max_tokens: int = 1) -> Request:
    """A request with this prompt; greedy."""
    return Request(number, uid, list(prompt), len(prompt), limit, max_tokens, Sampling(), silent())
