"""What is in the bytes that an engine sent? What no engine of ours reports is its fault, and it is replaced.

The one place of the supervisor that reads its protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from nvstreamd.errors import ProtocolError, from_wire
from nvstreamd.supervisor.events import Delta, Finished
from nvstreamd.supervisor.known import Format, ModelFacts, Placement
from nvstreamd.supervisor.reports import (
    Beat,
    Described,
    Encoded,
    Ended,
    Failure,
    Loaded,
    PackProgress,
    Prefilled,
    Queued,
    Report,
    Stats,
    Tokens,
    UserLoad,
)
from nvstreamd.wire import engine_pb2 as wire

# No stage of an engine takes longer; what is said in seconds becomes a google.protobuf.Duration.
LONGEST_SECONDS: Final = 1e9
# Of a model's facts, notes and figures, which every look at the status repeats.
MOST_RATE: Final = 1e15
MOST_TOLD: Final = 1 << 18
# The numbers of nvstream.v1.ModelFormat.
FORMATS: Final = {1: Format.GGUF, 2: Format.PACKED}


def parsed(data: bytes) -> Report:
    """The report in these bytes. Raises ProtocolError when no engine of ours makes such a one."""
    try:
        message = wire.FromEngine.FromString(data)
    except DecodeError:
        raise ProtocolError(f"{len(data)} bytes that are no report") from None
    kind = message.WhichOneof("report")
    if kind in ("loaded", "described", "stats") and len(data) > MOST_TOLD:
        raise ProtocolError(f"{kind}: {len(data)} bytes of facts")
    return report_of(message)


def report_of(message: wire.FromEngine) -> Report:
    """The report as the daemon has it. Raises ProtocolError."""
    kind = message.WhichOneof("report")
    if kind is None:
        raise ProtocolError("an empty report")
    return READERS[kind](getattr(message, kind))


def _seconds(kind: str, seconds: float) -> float:
    # Not a number is neither.
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ProtocolError(f"{kind}: {seconds} seconds")
    return seconds


def _seconds_if_set(kind: str, message: Any, field: str) -> float | None:
    return _seconds(kind, getattr(message, field)) if message.HasField(field) else None


def _rate(kind: str, rate: float) -> float:
    if not 0 <= rate <= MOST_RATE:
        raise ProtocolError(f"{kind}: {rate} bytes a second")
    return rate


def _tokens(said: wire.Tokens) -> Tokens:
    delta = said.delta
    return Tokens(said.id, Delta(delta, delta.token_ids, delta.text, delta.ByteSize()))


def _queued(said: wire.Queued) -> Queued:
    return Queued(said.id, said.position, said.prompt_tokens, _seconds_if_set("queued", said, "eta_seconds"))


def _beat(said: wire.Beat) -> Beat:
    return Beat(said.steps, said.work, _seconds("beat", said.pass_seconds), said.peak_bytes)


def _failure(said: wire.Failure) -> Failure:
    return Failure(said.id, from_wire(said.status, said.message, said.hint, said.field))


def _stats(said: wire.Stats) -> Stats:
    if len(said.expert_hits) != len(said.expert_misses):
        raise ProtocolError(f"stats: hits of {len(said.expert_hits)} layers, misses of {len(said.expert_misses)}")
    return Stats(
        running=said.running,
        queued=said.queued,
        passes=said.passes,
        streamed_bytes=said.streamed_bytes,
        tokens_generated=said.tokens_generated,
        kv_pages_used=said.kv_pages_used,
        kv_pages_total=said.kv_pages_total,
        peak_weight_bytes=said.peak_weight_bytes,
        proposed_tokens=said.proposed_tokens,
        accepted_tokens=said.accepted_tokens,
        read_bytes_per_second=_rate("stats", said.read_bytes_per_second),
        pass_seconds=_seconds_if_set("stats", said, "pass_seconds"),
        predicted_pass_seconds=_seconds_if_set("stats", said, "predicted_pass_seconds"),
        expert_hits=tuple(said.expert_hits),
        expert_misses=tuple(said.expert_misses),
        users=tuple(UserLoad(user.uid, user.running, user.queued) for user in said.users),
    )


def _facts(said: Any) -> ModelFacts:
    return ModelFacts(
        architecture=said.architecture,
        format=FORMATS.get(said.format, Format.UNKNOWN),
        weight_bytes=said.weight_bytes,
        layers=said.layers,
        context_length=said.context_length,
        vocabulary_size=said.vocabulary_size,
        bytes_by_type=dict(said.bytes_by_type),
        minimum_budget=said.minimum_budget,
        bytes_per_token=said.bytes_per_token,
        kv_bytes_per_token=said.kv_bytes_per_token,
        description=said.description,
        readers=said.readers,
    )


def _placement(said: Any) -> Placement:
    return Placement(
        budget=said.budget,
        resident_bytes=said.resident_bytes,
        slot_bytes=said.slot_bytes,
        streamed_bytes_per_pass=said.streamed_bytes_per_pass,
        read_bytes_per_second=_rate("loaded", said.read_bytes_per_second),
        predicted_pass_seconds=_seconds("loaded", said.predicted_pass_seconds),
        measured_pass_seconds=_seconds_if_set("loaded", said, "measured_pass_seconds"),
        backend=said.backend,
        notes=tuple(said.notes),
        kernel=said.kernel,
        arithmetic=said.arithmetic,
        kv_budget=said.kv_budget,
        vram=said.vram,
        vram_resident_bytes=said.vram_resident_bytes,
        link_bytes_per_pass=said.link_bytes_per_pass,
        link_bytes_per_second=_rate("loaded", said.link_bytes_per_second),
        host_bytes_per_pass=said.host_bytes_per_pass,
        host_bytes_per_second=_rate("loaded", said.host_bytes_per_second),
    )


def _progress(said: wire.PackProgress) -> PackProgress:
    of = said.progress
    return PackProgress(of.bytes_done, of.bytes_total, of.bytes_resumed)


READERS: Final[dict[str, Callable[[Any], Report]]] = {
    "described": lambda said: Described(_facts(said.facts), said.path),
    "pack_progress": _progress,
    "loaded": lambda said: Loaded(_facts(said.facts), _placement(said.placement)),
    "queued": _queued,
    "prefilled": lambda said: Prefilled(said.id, said.done, said.total),
    "tokens": _tokens,
    "ended": lambda said: Ended(said.id, Finished(said.finished)),
    "encoded": lambda said: Encoded(said.id, said.response),
    "stats": _stats,
    "failure": _failure,
    "beat": _beat,
}
