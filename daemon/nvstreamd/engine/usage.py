"""Why has a request come to its end, and what did it cost?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum, auto

from nvstreamd.engine.request import Request


class Reason(Enum):
    """Why an answer ends: the model ended it, a stop string was met, `max_tokens` were made, the context is full."""

    END = auto()
    STOP = auto()
    LENGTH = auto()
    CONTEXT = auto()


@dataclass(frozen=True, slots=True)
class Usage:
    """The figures of a request that has ended. Passes and bytes are those that it took part in, with others.

    `accepted_tokens` of the `proposed_tokens` that were guessed were right. `caused_bytes` are those off the drive that
    would not have been read without it, others' part taken off. `own_bytes` were multiplied where they rest in a
    device's own memory.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    passes: int
    resident_bytes: int
    streamed_bytes: int
    own_bytes: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    proposed_tokens: int
    accepted_tokens: int
    caused_bytes: int


def usage_of(request: Request) -> Usage:
    """The figures of a request that has just ended. Times are of this engine; replayed tokens count."""
    now = time.monotonic()
    admitted = request.admitted or now
    first = request.first_token or now
    return Usage(
        prompt_tokens=request.prompt_length,
        cached_tokens=request.cached,
        completion_tokens=request.generated,
        passes=request.passes,
        resident_bytes=request.resident_bytes,
        streamed_bytes=request.streamed_bytes,
        own_bytes=request.own_bytes,
        queue_seconds=admitted - request.arrived,
        prefill_seconds=first - admitted,
        decode_seconds=now - first,
        proposed_tokens=request.proposed,
        accepted_tokens=request.accepted,
        caused_bytes=round(request.caused_bytes),
    )
