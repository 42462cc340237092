"""What does the engine know of one request while it lives?"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from nvstream.v1.inference_pb2 import TokenLogprob
from nvstreamd.engine.constraint import Constraint
from nvstreamd.engine.output import Output
from nvstreamd.engine.sampling import Sampling


@dataclass(slots=True, eq=False)
class Request:
    """A sequence of tokens: the prompt, then what was generated.

    `computed` tokens of it have their keys and values in `pages`. `limit` is the length at which it ends.
    `details` are the log probabilities of tokens that are still held back. `cached` prompt tokens came from another
    request's pages, `preemptions` counts how often its own were taken away, when `furthest` tokens had been computed.
    `share` is the uid whose share it uses, `uid` unless another is given; `weight` is that share's, and a `batch`
    request waits for all others.
    """

    id: int
    uid: int
    tokens: list[int]
    prompt_length: int
    limit: int
    max_tokens: int
    sampling: Sampling
    output: Output
    constraint: Constraint | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    share: int = -1
    weight: float = 1.0
    batch: bool = False
    details: deque[TokenLogprob] = field(default_factory=deque)
    stopped_by: str | None = None
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    cached: int = 0
    preemptions: int = 0
    furthest: int = 0
    passes: int = 0
    streamed_bytes: int = 0
    resident_bytes: int = 0
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None

    def __post_init__(self) -> None:
        if self.share < 0:
            self.share = self.uid

    @property
    def generated(self) -> int:
        """Tokens after the prompt, replayed ones included."""
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still missing; more than one: in prefill."""
        return len(self.tokens) - self.computed
