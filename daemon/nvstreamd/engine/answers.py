"""How does what was generated become messages to the daemon? The one place that knows how clients get an answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine.output import Piece
from nvstreamd.engine.request import Likelihood, Request
from nvstreamd.engine.usage import Reason, Usage
from nvstreamd.wire.engine_pb2 import Ended, FromEngine, Prefilled, Tokens

REASONS: Final = {
    Reason.END: public.FINISH_REASON_END, Reason.STOP: public.FINISH_REASON_STOP,
    Reason.LENGTH: public.FINISH_REASON_LENGTH, Reason.CONTEXT: public.FINISH_REASON_CONTEXT,
}


def tokens_message(request: Request, piece: Piece, details: Sequence[Likelihood]) -> FromEngine:
    """What may be shown now, with `details` of its tokens if they were asked for."""
    logprobs = [_logprob(each) for each in details] if details else ()
    delta = public.Delta(token_ids=piece.tokens, text=piece.text, logprobs=logprobs)
    return FromEngine(tokens=Tokens(id=request.id, delta=delta))


def ended_message(request: Request, reason: Reason, stop: str | None, usage: Usage) -> FromEngine:
    """The end of a request, by which stop string if by one, and what it cost."""
    finished = public.Finished(reason=REASONS[reason], stop_match=stop, usage=_usage(usage))
    return FromEngine(ended=Ended(id=request.id, finished=finished))


def prefilled_message(request: Request) -> FromEngine:
    """How far the prompt of a request is."""
    done = min(request.computed, request.prompt_length)
    return FromEngine(prefilled=Prefilled(id=request.id, done=done, total=request.prompt_length))


def _logprob(detail: Likelihood) -> public.TokenLogprob:
    return public.TokenLogprob(token_id=detail.token, logprob=detail.logprob,
                               top=[public.TopLogprob(token_id=token, logprob=each) for token, each in detail.top])


def _usage(usage: Usage) -> public.Usage:
    message = public.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        weight_passes=usage.passes,
        proposed_tokens=usage.proposed_tokens,
        accepted_tokens=usage.accepted_tokens,
        caused_bytes=usage.caused_bytes,
        bytes=[*([public.TierBytes(tier=public.TIER_VRAM, bytes=usage.own_bytes)] if usage.own_bytes else []),
               public.TierBytes(tier=public.TIER_RAM, bytes=usage.resident_bytes),
               public.TierBytes(tier=public.TIER_NVME, bytes=usage.streamed_bytes)],
    )
    message.queue_time.FromTimedelta(timedelta(seconds=usage.queue_seconds))
    message.prefill_time.FromTimedelta(timedelta(seconds=usage.prefill_seconds))
    message.decode_time.FromTimedelta(timedelta(seconds=usage.decode_seconds))
    return message
