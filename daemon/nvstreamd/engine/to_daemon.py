"""How does what an engine says of itself and its model become messages to the daemon? Answers to clients: `answers`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from nvstream.v1 import models_pb2 as public
from nvstreamd.engine.reports import Beat, Facts, Queued, Stats
from nvstreamd.wire import engine_pb2 as wire


def described_message(facts: Facts, path: str) -> wire.FromEngine:
    """What a model needs; `path` is its file, or where the manifest of an import was written."""
    return wire.FromEngine(described=wire.Described(facts=facts_message(facts), path=path))


def progress_message(done: int, total: int, resumed: int) -> wire.FromEngine:
    """How far an import is, in bytes: see nvstream.v1.ImportProgress."""
    message = public.ImportProgress(bytes_done=done, bytes_total=total, bytes_resumed=resumed)
    return wire.FromEngine(pack_progress=wire.PackProgress(progress=message))


def loaded_message(facts: Facts, placement: public.Placement) -> wire.FromEngine:
    """That the model can answer, and where its weights are."""
    return wire.FromEngine(loaded=wire.Loaded(facts=facts_message(facts), placement=placement))


def queued_message(queued: Queued) -> wire.FromEngine:
    """Where in the queue a request is."""
    return wire.FromEngine(queued=wire.Queued(**_fields(queued)))


def encoded_message(call: int, response: Any) -> wire.FromEngine:
    """The ids of a text, in the TokenizeResponse that its worker made: nobody takes them out and puts them in again."""
    message = wire.FromEngine()
    message.encoded.id = call
    message.encoded.response.CopyFrom(response)
    return message


def stats_message(stats: Stats) -> wire.FromEngine:
    """What the engine has done."""
    users = [wire.UserLoad(**_fields(user)) for user in stats.users]
    return wire.FromEngine(stats=wire.Stats(**{**_fields(stats), "users": users}))


def beat_message(beat: Beat) -> wire.FromEngine:
    """That the engine lives."""
    return wire.FromEngine(beat=wire.Beat(**_fields(beat)))


def facts_message(facts: Facts) -> public.ModelFacts:
    """A model's facts as everybody gets them."""
    values = _fields(facts)
    values["format"] = public.MODEL_FORMAT_PACKED if values.pop("packed") else public.MODEL_FORMAT_GGUF
    return public.ModelFacts(**values)


def _fields(of: Any) -> dict[str, Any]:
    """The fields by name; they have the names of the message's, where None is for one that is not set."""
    return {field.name: getattr(of, field.name) for field in fields(of)}
