"""What does the daemon say about models, placements and itself, as Python values?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class ModelState(StrEnum):
    """The state of a model, by which it can answer or not. RECOVERING: its engine is being replaced, streams wait."""

    UNSPECIFIED = "unspecified"
    UNLOADED = "unloaded"
    LOADING = "loading"
    SERVING = "serving"
    RECOVERING = "recovering"
    FAILED = "failed"


class ModelFormat(StrEnum):
    """How a model lies on disk: a GGUF in place, or packed into segments."""

    UNSPECIFIED = "unspecified"
    GGUF = "gguf"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts that a model's file tells without reading a weight. Sizes and budgets are bytes.

    `kv_bytes_per_token` is a mean over a sequence of the whole context: layers with a window keep no more than that.
    `readers` are the versions of the server that read a packed model, in words; empty for a GGUF.
    """

    architecture: str
    format: ModelFormat
    weight_bytes: int
    layers: int
    context_length: int
    vocabulary_size: int
    bytes_by_type: dict[str, int]
    minimum_budget: int
    bytes_per_token: int
    kv_bytes_per_token: int
    description: str
    readers: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a loaded model's weights rest (bytes), the path and kernel in use, and expected against measured.

    `budget` is the ceiling of its weights, `kv_budget` that of its KV cache.

    `arithmetic` is an id: engines where it is equal give the same answer to the bit.
    `notes` say why other backends were refused and what this one does without. `measured_pass_seconds`
    is None before the first pass. Where a card computes, `vram` is the ceiling of its memory, of which
    weights that rest there take `vram_resident_bytes`; `link_bytes_per_pass` come to it in a pass,
    and the processor multiplies `host_bytes_per_pass` where they rest. Without one all of these are 0.
    """

    budget: int
    resident_bytes: int
    slot_bytes: int
    streamed_bytes_per_pass: int
    read_bytes_per_second: float
    predicted_pass_seconds: float
    measured_pass_seconds: float | None
    backend: str
    notes: tuple[str, ...]
    kernel: str
    arithmetic: str
    kv_budget: int
    vram: int = 0
    vram_resident_bytes: int = 0
    link_bytes_per_pass: int = 0
    link_bytes_per_second: float = 0.0
    host_bytes_per_pass: int = 0
    host_bytes_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """One model. `facts`: None in a listing of a model not loaded; `placement`: None unless it is loaded.

    `error` says why the state is FAILED.
    """

    name: str
    path: str
    state: ModelState
    facts: ModelFacts | None
    placement: Placement | None
    error: str


class ModelList(list[Model]):
    """Models. `notes`: names that two of them have, files that are not offered, imports that have not finished."""

    def __init__(self, models: Iterable[Model] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(models)
        self.notes = tuple(notes)


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is, in bytes. `bytes_resumed` were written by an earlier attempt and verified."""

    bytes_done: int
    bytes_total: int
    bytes_resumed: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the daemon takes the caller for."""

    uid: int
    administrator: bool


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The work of one engine, now and since its model was loaded. `pid`: None while there is none.

    `pass_seconds`: for how long the pass has been running that runs, None between passes. `stall`: what does not come
    to its end, and for how long; empty while the engine is well. `accepted_tokens` of the `proposed_tokens` that were
    guessed were right. Of a model with experts `expert_hits` says by layer how often passes found one that they needed
    in memory, `expert_misses` how often not.
    """

    model: Model
    running: int
    queued: int
    restarts: int
    passes: int
    streamed_bytes: int
    tokens_generated: int
    kv_pages_used: int
    kv_pages_total: int
    pid: int | None
    peak_weight_bytes: int
    pass_seconds: float | None
    stall: str
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    expert_hits: tuple[int, ...] = ()
    expert_misses: tuple[int, ...] = ()


class Priority(StrEnum):
    """The priority of a user's requests: those of BATCH wait for all others'."""

    UNSPECIFIED = "unspecified"
    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class UserShare:
    """The share of the daemon that a user has now, and may have; None is no limit.

    A busy engine gives a user of `weight` 2 twice as much as one of 1. `requests` are open, of them `running` in the
    passes of an engine and `queued` for their turn. Tokens are of prompts and answers; `longest_context` is in tokens.
    """

    uid: int
    weight: float
    priority: Priority
    open_calls: int
    request_bytes: int
    requests: int
    most_requests: int | None
    running: int
    queued: int
    tokens_this_minute: int
    tokens_per_minute: int | None
    tokens_today: int
    tokens_per_day: int | None
    longest_context: int | None


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon's version, uptime in seconds, engines, and whether it is shutting down (`draining`).

    `notes`: what it does without on its machine, and why. `shares`: the caller's own, then, for an administrator,
    everybody else's.
    """

    version: str
    uptime_seconds: float
    engines: tuple[EngineStatus, ...]
    caller: Caller
    draining: bool
    notes: tuple[str, ...]
    shares: tuple[UserShare, ...]
