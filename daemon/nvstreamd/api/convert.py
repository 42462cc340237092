"""How do the daemon's own words become messages of nvstream.v1, and a client's messages become orders?

What only engines and clients read passes as it came: prompts, options, deltas, ids of a text.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, cast

from google.protobuf.duration_pb2 import Duration

from nvstream.v1 import inference_pb2 as public
from nvstream.v1 import models_pb2 as models
from nvstreamd.supervisor.commands import Prompt
from nvstreamd.supervisor.events import Accepted, Delta, Event, Finished, Phase, Progress
from nvstreamd.supervisor.known import Format, Listed, ModelFacts, Placement, State
from nvstreamd.supervisor.reports import PackProgress

STATES: Final = {
    State.UNLOADED: models.MODEL_STATE_UNLOADED, State.LOADING: models.MODEL_STATE_LOADING,
    State.SERVING: models.MODEL_STATE_SERVING, State.RECOVERING: models.MODEL_STATE_RECOVERING,
    State.FAILED: models.MODEL_STATE_FAILED,
}
FORMATS: Final = {
    Format.UNKNOWN: models.MODEL_FORMAT_UNSPECIFIED, Format.GGUF: models.MODEL_FORMAT_GGUF,
    Format.PACKED: models.MODEL_FORMAT_PACKED,
}
PHASES: Final = {
    Phase.QUEUED: public.PHASE_QUEUED, Phase.LOADING: public.PHASE_LOADING, Phase.PREFILL: public.PHASE_PREFILL,
    Phase.RECOVERING: public.PHASE_RECOVERING,
}


def prompt_of(request: public.GenerateRequest) -> Prompt:
    """What a client wants continued; a request without any has an empty text."""
    if request.WhichOneof("prompt") == "token_ids":
        return Prompt("token_ids", request.token_ids)
    return Prompt("text", request.text)


def text_of(request: public.TokenizeRequest) -> Prompt:
    """What a client wants the ids of."""
    return Prompt("chat", request.chat) if request.WhichOneof("input") == "chat" else Prompt("text", request.text)


def event_message(event: Event) -> public.StreamEvent:
    """An event as a client gets it."""
    match event:
        case Delta():
            message = public.StreamEvent(delta=cast(public.Delta, event.payload))
            message.delta.text = event.text
            return message
        case Progress():
            return public.StreamEvent(progress=public.Progress(
                phase=PHASES[event.phase], done=event.done, total=event.total, eta=_duration(event.eta_seconds)))
        case Accepted():
            return public.StreamEvent(accepted=public.Accepted(
                request_id=event.request_id, queue_position=event.queue_position, eta=_duration(event.eta_seconds)))
        case Finished():
            return public.StreamEvent(finished=cast(public.Finished, event.payload))


def model_message(model: Listed) -> models.Model:
    """A model as clients see it."""
    return models.Model(
        name=model.name,
        path=str(model.path),
        state=STATES[model.state],
        facts=None if model.facts is None else facts_message(model.facts),
        placement=None if model.placement is None else placement_message(model.placement),
        error=model.error,
    )


def facts_message(facts: ModelFacts) -> models.ModelFacts:
    """The facts of a model as clients see them."""
    return models.ModelFacts(
        architecture=facts.architecture,
        format=FORMATS[facts.format],
        weight_bytes=facts.weight_bytes,
        layers=facts.layers,
        context_length=facts.context_length,
        vocabulary_size=facts.vocabulary_size,
        bytes_by_type=facts.bytes_by_type,
        minimum_budget=facts.minimum_budget,
        bytes_per_token=facts.bytes_per_token,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        description=facts.description,
        readers=facts.readers,
    )


def placement_message(placement: Placement) -> models.Placement:
    """A placement as clients see it."""
    return models.Placement(
        budget=placement.budget,
        resident_bytes=placement.resident_bytes,
        slot_bytes=placement.slot_bytes,
        streamed_bytes_per_pass=placement.streamed_bytes_per_pass,
        read_bytes_per_second=placement.read_bytes_per_second,
        predicted_pass_seconds=placement.predicted_pass_seconds,
        measured_pass_seconds=placement.measured_pass_seconds,
        backend=placement.backend,
        notes=placement.notes,
        kernel=placement.kernel,
        arithmetic=placement.arithmetic,
        kv_budget=placement.kv_budget,
        vram=placement.vram,
        vram_resident_bytes=placement.vram_resident_bytes,
        link_bytes_per_pass=placement.link_bytes_per_pass,
        link_bytes_per_second=placement.link_bytes_per_second,
        host_bytes_per_pass=placement.host_bytes_per_pass,
        host_bytes_per_second=placement.host_bytes_per_second,
    )


def progress_message(progress: PackProgress) -> models.ImportProgress:
    """How far an import is, as its client sees it."""
    return models.ImportProgress(bytes_done=progress.done, bytes_total=progress.total, bytes_resumed=progress.resumed)


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    found = Duration()
    found.FromTimedelta(timedelta(seconds=seconds))
    return found
