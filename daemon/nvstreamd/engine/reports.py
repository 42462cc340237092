"""What does an engine say of itself and of the model that it has? In its own words; `to_daemon` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's file tells without a weight being read: see nvstream.v1.ModelFacts. Sizes are in bytes.

    `packed` is whether it was imported; one that was not is a GGUF.
    """

    architecture: str
    packed: bool
    weight_bytes: int
    layers: int
    context_length: int
    vocabulary_size: int
    bytes_by_type: Mapping[str, int]
    minimum_budget: int
    bytes_per_token: int
    kv_bytes_per_token: int
    description: str
    readers: str


@dataclass(frozen=True, slots=True)
class UserLoad:
    """What an engine does for one uid. `served_seconds` are of passes that its requests took, divided by its weight."""

    uid: int
    running: int
    queued: int
    served_seconds: float


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine has done and does: see engine.proto, Stats. Seconds are None before a pass was measured."""

    running: int
    queued: int
    passes: int
    streamed_bytes: int
    tokens_generated: int
    kv_pages_used: int
    kv_pages_total: int
    pass_seconds: float | None
    predicted_pass_seconds: float | None
    read_bytes_per_second: float
    peak_weight_bytes: int
    users: Sequence[UserLoad]
    proposed_tokens: int
    accepted_tokens: int
    expert_hits: Sequence[int]
    expert_misses: Sequence[int]


@dataclass(frozen=True, slots=True)
class Beat:
    """An engine lives: see engine.proto, Beat. `pass_seconds` are None between passes."""

    steps: int
    work: bool
    pass_seconds: float | None
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Queued:
    """The place of a request in the queue, 0: it runs. `eta_seconds` are None while nobody can tell."""

    id: int
    position: int
    prompt_tokens: int
    eta_seconds: float | None
