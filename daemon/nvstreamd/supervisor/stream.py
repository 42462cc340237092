"""What does the daemon keep of a call, so that another engine can go on with it?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError
from nvstreamd.supervisor.outbox import Outbox
from nvstreamd.wire.engine_pb2 import Encode, Encoded, Queued, Run


@dataclass(slots=True, eq=False)
class Stream:
    """One client's stream: what was asked, which tokens it has been given, and the events it has yet to take.

    `place` is its first place in the queue, None before it was accepted. `charge` counts tokens, prompt and answer.
    """

    run: Run
    charge: Callable[[int], None] = lambda tokens: None
    place: int | None = None
    events: Outbox = field(default_factory=Outbox)

    def queued(self, request_id: str, report: Queued) -> bool:
        """Accepts the stream, or tells it that it has moved. As all of these: False when its client does not read."""
        if self.place is None:
            self.charge(report.prompt_tokens)
            self.place = report.position
            event = public.StreamEvent(accepted=public.Accepted(request_id=request_id, queue_position=report.position))
            eta = event.accepted.eta
        else:
            ahead = min(report.position, self.place)
            event = self._progress(public.PHASE_QUEUED, self.place - ahead, self.place)
            eta = event.progress.eta
        if report.HasField("eta_seconds"):
            eta.FromTimedelta(timedelta(seconds=report.eta_seconds))
        return self.events.put(event)

    def deliver(self, delta: public.Delta) -> bool:
        """Puts a delta out. From here on a replay goes on behind its tokens."""
        self.charge(len(delta.token_ids))
        self.run.sent_token_ids.extend(delta.token_ids)
        return self.events.put(public.StreamEvent(delta=delta))

    def progress(self, phase: public.Phase.ValueType, done: int = 0, total: int = 0) -> bool:
        """Tells the client what is happening."""
        return self.events.put(self._progress(phase, done, total))

    def finish(self, finished: public.Finished) -> None:
        """Ends the stream."""
        self.events.put(public.StreamEvent(finished=finished))

    def fail(self, error: NvstreamError) -> None:
        """Ends the stream with an error."""
        self.events.put(error)

    def _progress(self, phase: public.Phase.ValueType, done: int, total: int) -> public.StreamEvent:
        return public.StreamEvent(progress=public.Progress(phase=phase, done=done, total=total))


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text on its way to token ids."""

    call: Encode
    answer: asyncio.Future[Encoded]

    def succeed(self, encoded: Encoded) -> None:
        """Hands the ids to whoever waits."""
        if not self.answer.done():
            self.answer.set_result(encoded)

    def fail(self, error: NvstreamError) -> None:
        """Hands the error to whoever waits."""
        if not self.answer.done():
            self.answer.set_exception(error)
