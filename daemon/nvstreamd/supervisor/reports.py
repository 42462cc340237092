"""What does an engine report? Each kind as the daemon has it; `from_engine` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import Message

from nvstreamd.errors import NvstreamError, ProtocolError
from nvstreamd.supervisor.events import Delta, Finished
from nvstreamd.supervisor.known import ModelFacts, Placement


@dataclass(frozen=True, slots=True)
class Described:
    """The facts of a model; `path` is where a packed one's manifest was written."""

    facts: ModelFacts
    path: str


@dataclass(frozen=True, slots=True)
class PackProgress:
    """How far an import is, in bytes; `resumed` were there from an earlier attempt."""

    done: int
    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine can answer."""

    facts: ModelFacts
    placement: Placement


@dataclass(frozen=True, slots=True)
class Queued:
    """The place of a request in the engine's queue, 0: in the next pass; `eta_seconds` None: nothing was measured."""

    number: int
    position: int
    prompt_tokens: int = 0
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """How many tokens of a prompt are computed."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is new of an answer."""

    number: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer."""

    number: int
    finished: Finished


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a text. `response`, an nvstream.v1.TokenizeResponse, may be megabytes and goes out as it is."""

    number: int
    response: Message


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of a call; `number` 0: of the engine."""

    number: int
    error: NvstreamError


@dataclass(frozen=True, slots=True)
class UserLoad:
    """How many requests of one uid an engine has."""

    uid: int
    running: int
    queued: int


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine's figures; seconds are None before a pass was measured. Experts are counted by layer."""

    running: int = 0
    queued: int = 0
    passes: int = 0
    streamed_bytes: int = 0
    tokens_generated: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    peak_weight_bytes: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    read_bytes_per_second: float = 0.0
    pass_seconds: float | None = None
    predicted_pass_seconds: float | None = None
    users: tuple[UserLoad, ...] = ()
    expert_hits: tuple[int, ...] = ()
    expert_misses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """The engine lives; `work` moves while `steps` does. `pass_seconds`: for how long the pass runs that runs, or 0."""

    steps: int = 0
    work: bool = False
    pass_seconds: float = 0.0
    peak_bytes: int = 0


OfCall = Queued | Prefilled | Tokens | Ended | Encoded | Failure
Report = Described | PackProgress | Loaded | OfCall | Stats | Beat
R = TypeVar("R", bound=Report)

# As the protocol calls them, for messages.
NAMES: Final[dict[type, str]] = {
    Described: "described", PackProgress: "pack_progress", Loaded: "loaded", Queued: "queued", Prefilled: "prefilled",
    Tokens: "tokens", Ended: "ended", Encoded: "encoded", Failure: "failure", Stats: "stats", Beat: "beat",
}


def checked(report: Report, kind: type[R]) -> R:
    """The report, if it is of this kind. Raises a failure as the NvstreamError it is, else ProtocolError."""
    if isinstance(report, Failure):
        raise report.error
    if not isinstance(report, kind):
        raise ProtocolError(f"{NAMES[type(report)]} where {NAMES[kind]} was due")
    return report
