"""Which messages do the scripts send?"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from nvstream.v1 import inference_pb2, models_pb2, status_pb2

Event = inference_pb2.StreamEvent

# Of a daemon, on one line of a terminal.
WITHOUT = "a drive that comes later is not noticed: no libudev"
NOTES = ("cufile: refused, the card is not listed", "p2pdma: needs driver 595")


def accepted(position: int = 0) -> Event:
    """The request has a place."""
    return Event(accepted=inference_pb2.Accepted(request_id="r1", queue_position=position))


def progress(phase: inference_pb2.Phase.ValueType, done: int, total: int) -> Event:
    """How far a phase is."""
    return Event(progress=inference_pb2.Progress(phase=phase, done=done, total=total))


def delta(text: str, *ids: int) -> Event:
    """New text."""
    return Event(delta=inference_pb2.Delta(text=text, token_ids=ids))


def finished(reason: str = "END") -> Event:
    """The end, with a usage of distinct figures."""
    usage = inference_pb2.Usage(
        prompt_tokens=12,
        cached_tokens=4,
        completion_tokens=30,
        weight_passes=31,
        proposed_tokens=12,
        accepted_tokens=9,
        caused_bytes=2 << 20,
        bytes=[inference_pb2.TierBytes(tier=inference_pb2.TIER_NVME, bytes=3 << 20)],
        queue_time=Duration(nanos=500_000_000),
        prefill_time=Duration(seconds=1),
        decode_time=Duration(seconds=10),
    )
    value = inference_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    return Event(finished=inference_pb2.Finished(reason=value, usage=usage))


def serving(name: str = "smollm2") -> models_pb2.Model:
    """A loaded model."""
    facts = models_pb2.ModelFacts(
        architecture="llama",
        format=models_pb2.MODEL_FORMAT_GGUF,
        weight_bytes=134 << 20,
        layers=30,
        context_length=8192,
        vocabulary_size=49152,
        bytes_by_type={"Q8_0": 134 << 20},
        minimum_budget=20 << 20,
    )
    placement = models_pb2.Placement(
        budget=60 << 20,
        streamed_bytes_per_pass=80 << 20,
        read_bytes_per_second=2e9,
        predicted_pass_seconds=0.04,
        measured_pass_seconds=0.05,
        backend="uring",
        kernel="native-q8_0",
        arithmetic="nvstream-2",
        kv_budget=8 << 20,
        notes=NOTES,
    )
    return models_pb2.Model(
        name=name,
        path=f"/models/{name}.gguf",
        state=models_pb2.MODEL_STATE_SERVING,
        facts=facts,
        placement=placement,
    )


def unloaded() -> models_pb2.Model:
    """A model that is only listed, without facts."""
    return models_pb2.Model(name="qwen3-8b-instruct-q4_k_m", state=models_pb2.MODEL_STATE_UNLOADED)


def daemon() -> status_pb2.GetStatusResponse:
    """A daemon with one engine."""
    engine = status_pb2.EngineStatus(model=serving(), running=2, queued=3, restarts=1, passes=99, pid=4711)
    return status_pb2.GetStatusResponse(
        version="0.1.0",
        uptime=Duration(seconds=7500),
        engines=[engine],
        caller=status_pb2.Caller(uid=1000, administrator=True),
        notes=[WITHOUT],
    )


def shared() -> status_pb2.GetStatusResponse:
    """The same, seen by an administrator: two users, of whom one has quotas, and an engine that is stuck."""
    found = daemon()
    found.engines[0].stall = "no pass for 40 s"
    found.engines[0].pass_running.CopyFrom(Duration(seconds=90))
    found.shares.add(uid=1000, weight=2, priority=status_pb2.PRIORITY_INTERACTIVE, open_calls=4, request_bytes=5 << 20,
                     requests=3, most_requests=8, running=1, queued=2, tokens_this_minute=500, tokens_per_minute=1000,
                     tokens_today=7000, longest_context=4096)
    found.shares.add(uid=1001, weight=1, priority=status_pb2.PRIORITY_BATCH)
    return found
