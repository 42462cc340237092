"""How do protobuf messages become this package's frozen dataclasses?"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration

from nvstream.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Phase,
    Progress,
    Tier,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from nvstream.facts import (
    Caller,
    DaemonStatus,
    EngineStatus,
    ImportProgress,
    Model,
    ModelFacts,
    ModelFormat,
    ModelList,
    ModelState,
    Placement,
    Priority,
    UserShare,
)
from nvstream.v1 import inference_pb2, models_pb2, status_pb2

E = TypeVar("E", bound=StrEnum)


def event(message: inference_pb2.StreamEvent) -> Event | None:
    """The event in a message; None for a kind that this client is too old to know."""
    match message.WhichOneof("event"):
        case "accepted":
            return _accepted(message.accepted)
        case "progress":
            return _progress(message.progress)
        case "delta":
            return _delta(message.delta)
        case "finished":
            return _finished(message.finished)
    return None


def import_event(message: models_pb2.ImportResponse) -> ImportProgress | Model | None:
    """The event in a message; None for a kind that this client is too old to know."""
    match message.WhichOneof("event"):
        case "progress":
            found = message.progress
            return ImportProgress(found.bytes_done, found.bytes_total, found.bytes_resumed)
        case "imported":
            return model(message.imported)
    return None


def model_list(message: models_pb2.ListResponse) -> ModelList:
    """Every model, and what is to be said of files that are none."""
    return ModelList((model(one) for one in message.models), message.notes)


def model(message: models_pb2.Model) -> Model:
    """The model with whatever of facts and placement was sent."""
    return Model(
        name=message.name,
        path=message.path,
        state=_member(ModelState, models_pb2.ModelState.DESCRIPTOR, "MODEL_STATE_", message.state),
        facts=_facts(message.facts) if message.HasField("facts") else None,
        placement=_placement(message.placement) if message.HasField("placement") else None,
        error=message.error,
    )


def status(message: status_pb2.GetStatusResponse) -> DaemonStatus:
    """The daemon's account of itself."""
    return DaemonStatus(
        version=message.version,
        uptime_seconds=_seconds(message.uptime),
        engines=tuple(_engine(engine) for engine in message.engines),
        caller=Caller(message.caller.uid, message.caller.administrator),
        draining=message.draining,
        notes=tuple(message.notes),
        shares=tuple(_share(share) for share in message.shares),
    )


def _accepted(message: inference_pb2.Accepted) -> Accepted:
    return Accepted(message.request_id, message.queue_position, _eta(message))


def _eta(message: inference_pb2.Accepted | inference_pb2.Progress) -> float | None:
    return _seconds(message.eta) if message.HasField("eta") else None


def _progress(message: inference_pb2.Progress) -> Progress:
    phase = _member(Phase, inference_pb2.Phase.DESCRIPTOR, "PHASE_", message.phase)
    return Progress(phase, message.done, message.total, _eta(message))


def _delta(message: inference_pb2.Delta) -> Delta:
    logprobs = tuple(_token_logprob(one) for one in message.logprobs)
    return Delta(tuple(message.token_ids), message.text, logprobs)


def _token_logprob(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    top = tuple(TopLogprob(one.token_id, one.logprob) for one in message.top)
    return TokenLogprob(message.token_id, message.logprob, top)


def _finished(message: inference_pb2.Finished) -> Finished:
    reason = _member(FinishReason, inference_pb2.FinishReason.DESCRIPTOR, "FINISH_REASON_", message.reason)
    stop_match = message.stop_match if message.HasField("stop_match") else None
    return Finished(reason, stop_match, _usage(message.usage))


def _usage(message: inference_pb2.Usage) -> Usage:
    by_tier: dict[Tier, int] = {}
    for one in message.bytes:
        tier = _member(Tier, inference_pb2.Tier.DESCRIPTOR, "TIER_", one.tier)
        by_tier[tier] = by_tier.get(tier, 0) + one.bytes
    return Usage(
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_tokens=message.completion_tokens,
        weight_passes=message.weight_passes,
        proposed_tokens=message.proposed_tokens,
        accepted_tokens=message.accepted_tokens,
        caused_bytes=message.caused_bytes,
        bytes_by_tier=by_tier,
        queue_seconds=_seconds(message.queue_time),
        prefill_seconds=_seconds(message.prefill_time),
        decode_seconds=_seconds(message.decode_time),
    )


def _facts(message: models_pb2.ModelFacts) -> ModelFacts:
    return ModelFacts(
        architecture=message.architecture,
        format=_member(ModelFormat, models_pb2.ModelFormat.DESCRIPTOR, "MODEL_FORMAT_", message.format),
        weight_bytes=message.weight_bytes,
        layers=message.layers,
        context_length=message.context_length,
        vocabulary_size=message.vocabulary_size,
        bytes_by_type=dict(message.bytes_by_type),
        minimum_budget=message.minimum_budget,
        bytes_per_token=message.bytes_per_token,
        kv_bytes_per_token=message.kv_bytes_per_token,
        description=message.description,
        readers=message.readers,
    )


def _placement(message: models_pb2.Placement) -> Placement:
    measured = message.measured_pass_seconds if message.HasField("measured_pass_seconds") else None
    return Placement(
        budget=message.budget,
        resident_bytes=message.resident_bytes,
        slot_bytes=message.slot_bytes,
        streamed_bytes_per_pass=message.streamed_bytes_per_pass,
        read_bytes_per_second=message.read_bytes_per_second,
        predicted_pass_seconds=message.predicted_pass_seconds,
        measured_pass_seconds=measured,
        backend=message.backend,
        notes=tuple(message.notes),
        kernel=message.kernel,
        arithmetic=message.arithmetic,
        kv_budget=message.kv_budget,
        vram=message.vram,
        vram_resident_bytes=message.vram_resident_bytes,
        link_bytes_per_pass=message.link_bytes_per_pass,
        link_bytes_per_second=message.link_bytes_per_second,
        host_bytes_per_pass=message.host_bytes_per_pass,
        host_bytes_per_second=message.host_bytes_per_second,
    )


def _engine(message: status_pb2.EngineStatus) -> EngineStatus:
    return EngineStatus(
        model=model(message.model),
        running=message.running,
        queued=message.queued,
        restarts=message.restarts,
        passes=message.passes,
        streamed_bytes=message.streamed_bytes,
        tokens_generated=message.tokens_generated,
        kv_pages_used=message.kv_pages_used,
        kv_pages_total=message.kv_pages_total,
        pid=message.pid if message.HasField("pid") else None,
        peak_weight_bytes=message.peak_weight_bytes,
        proposed_tokens=message.proposed_tokens,
        accepted_tokens=message.accepted_tokens,
        expert_hits=tuple(message.expert_hits),
        expert_misses=tuple(message.expert_misses),
        pass_seconds=_seconds(message.pass_running) if message.HasField("pass_running") else None,
        stall=message.stall,
    )


def _share(message: status_pb2.UserShare) -> UserShare:
    return UserShare(
        uid=message.uid,
        weight=message.weight,
        priority=_member(Priority, status_pb2.Priority.DESCRIPTOR, "PRIORITY_", message.priority),
        open_calls=message.open_calls,
        request_bytes=message.request_bytes,
        requests=message.requests,
        running=message.running,
        queued=message.queued,
        tokens_this_minute=message.tokens_this_minute,
        tokens_today=message.tokens_today,
        most_requests=message.most_requests if message.HasField("most_requests") else None,
        tokens_per_minute=message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        tokens_per_day=message.tokens_per_day if message.HasField("tokens_per_day") else None,
        longest_context=message.longest_context if message.HasField("longest_context") else None,
    )


def _member(kind: type[E], wire: EnumDescriptor, prefix: str, value: int) -> E:
    """The member for a number on the wire; `UNSPECIFIED` for one that a newer server invented."""
    known = wire.values_by_number.get(value)
    return kind(known.name.removeprefix(prefix).lower() if known else "unspecified")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
