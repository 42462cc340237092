"""What does the daemon keep of a call, so that another engine can go on with it?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import Encode, Queued, Run

Event = public.StreamEvent | NvstreamError


@dataclass(slots=True, eq=False)
class Stream:
    """One client's stream: what was asked, which tokens it has been given, and the events it has yet to take.

    `place` is its first place in the queue, None before it was accepted.
    """

    run: Run
    place: int | None = None
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def queued(self, request_id: str, report: Queued) -> None:
        """Accepts the stream, or tells it that it has moved up."""
        if self.place is None:
            self.place = report.position
            event = public.StreamEvent(accepted=public.Accepted(request_id=request_id, queue_position=report.position))
            eta = event.accepted.eta
        else:
            ahead = min(report.position, self.place)
            event = self._progress(public.PHASE_QUEUED, self.place - ahead, self.place)
            eta = event.progress.eta
        if report.HasField("eta_seconds"):
            eta.FromTimedelta(timedelta(seconds=report.eta_seconds))
        self.events.put_nowait(event)

    def deliver(self, delta: public.Delta) -> None:
        """Puts a delta out. From here on a replay goes on behind its tokens."""
        self.run.sent_token_ids.extend(delta.token_ids)
        self.events.put_nowait(public.StreamEvent(delta=delta))

    def progress(self, phase: public.Phase.ValueType, done: int = 0, total: int = 0) -> None:
        """Tells the client what is happening."""
        self.events.put_nowait(self._progress(phase, done, total))

    def fail(self, error: NvstreamError) -> None:
        """Ends the stream with an error."""
        self.events.put_nowait(error)

    def _progress(self, phase: public.Phase.ValueType, done: int, total: int) -> public.StreamEvent:
        return public.StreamEvent(progress=public.Progress(phase=phase, done=done, total=total))


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text on its way to token ids."""

    call: Encode
    answer: asyncio.Future[list[int]]

    def succeed(self, ids: Iterable[int]) -> None:
        """Hands the ids to whoever waits."""
        if not self.answer.done():
            self.answer.set_result(list(ids))

    def fail(self, error: NvstreamError) -> None:
        """Hands the error to whoever waits."""
        if not self.answer.done():
            self.answer.set_exception(error)
