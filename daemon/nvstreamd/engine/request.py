"""What does the engine know of one request while it lives?"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nvstreamd.engine.constraint import Constraint
from nvstreamd.engine.cost import PassCost
from nvstreamd.engine.kv_cache import SequencePages
from nvstreamd.engine.output import Output
from nvstreamd.engine.sampling import Sampling


class Likelihood(NamedTuple):
    """The log probability of a generated token, and the likeliest beside it: (id, log probability)."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(slots=True, eq=False)
class Request:
    """A sequence of tokens: the prompt, then what was generated.

    `computed` tokens of it have their keys and values in what is `kept`. `limit` is the length at which it ends.
    `details` are those of tokens that are still held back. `cached` counts prompt tokens whose pages
    came from an earlier request. `preemptions` counts how often it lost its own pages; `furthest` is how many tokens
    had been computed when it did. It uses the share of the uid `share`, which is `uid` unless another is given, and
    which has `weight`. A `batch` request waits for all others. One that `speculates` may have tokens guessed:
    `proposed` of them were, and `accepted` were right.
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
    details: deque[Likelihood] = field(default_factory=deque)
    stopped_by: str | None = None
    computed: int = 0
    kept: SequencePages = field(default_factory=SequencePages)
    cached: int = 0
    preemptions: int = 0
    furthest: int = 0
    passes: int = 0
    streamed_bytes: int = 0
    resident_bytes: int = 0
    own_bytes: int = 0
    caused_bytes: float = 0.0
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    speculates: bool = True
    proposed: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        if self.share < 0:
            self.share = self.uid

    def account(self, cost: PassCost, caused: float) -> None:
        """Takes part in a pass that moved so much, of which it `caused` so many bytes."""
        self.caused_bytes += caused
        self.passes += 1
        self.streamed_bytes += cost.streamed_bytes
        self.resident_bytes += cost.resident_bytes
        self.own_bytes += cost.own_bytes

    @property
    def generated(self) -> int:
        """Tokens after the prompt, replayed ones included."""
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still missing; more than one: in prefill."""
        return len(self.tokens) - self.computed
