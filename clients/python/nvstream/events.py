"""What does a stream of tokens consist of, as Python values?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The phase of a request before its tokens come. UNSPECIFIED: one that this client does not know yet."""

    UNSPECIFIED = "unspecified"
    QUEUED = "queued"
    LOADING = "loading"
    PREFILL = "prefill"
    RECOVERING = "recovering"


class FinishReason(StrEnum):
    """Why a generation ended: the model said so, a stop string, `max_tokens`, or a full context."""

    UNSPECIFIED = "unspecified"
    END = "end"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"


class Tier(StrEnum):
    """Where weight bytes came from."""

    UNSPECIFIED = "unspecified"
    VRAM = "vram"
    RAM = "ram"
    NVME = "nvme"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request has a place. `queue_position` 0: the next pass; `eta_seconds` None: not measured yet."""

    request_id: str
    queue_position: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is: prompt tokens in PREFILL, in QUEUED how many of those ahead have gone. `total` 0: not known.

    `eta_seconds`, in QUEUED: until the request runs; None: not measured yet.
    """

    phase: Phase
    done: int
    total: int
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position; `logprob` is a natural logarithm."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token, its natural log probability, and the likeliest ones beside it."""

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """The tokens and the text since the last delta. `text` never holds a part of a code point; it may be empty."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a request: tokens, passes over the weights, bytes by where they came from, seconds.

    `accepted_tokens` of the `proposed_tokens` that were guessed were right. `caused_bytes` of those off the drive are
    this request's own, where passes were shared.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    weight_passes: int
    bytes_by_tier: dict[Tier, int]
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    caused_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every stream that did not fail. `stop_match`: the stop string that was met."""

    reason: FinishReason
    stop_match: str | None
    usage: Usage


Event = Accepted | Progress | Delta | Finished
