"""What does the daemon keep of a call, so that another engine can go on with it?"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from nvstreamd.errors import NvstreamError
from nvstreamd.supervisor.commands import Encode, EncodeOrder, Run, RunOrder
from nvstreamd.supervisor.events import Accepted, Delta, Finished, Phase, Progress
from nvstreamd.supervisor.outbox import Outbox
from nvstreamd.supervisor.reports import Encoded, Queued


@dataclass(slots=True, eq=False)
class Stream:
    """One client's stream: what was asked, which tokens it has been given, and the events it has yet to take.

    `number` is the model's for it. `place` is its first place in the queue, None before it was accepted. `charge`
    counts tokens, prompt and answer.
    """

    number: int
    order: RunOrder
    charge: Callable[[int], None] = lambda tokens: None
    place: int | None = None
    events: Outbox = field(default_factory=Outbox)
    # Four bytes a token, however long the answer is.
    sent: array[int] = field(default_factory=lambda: array("I"))

    @property
    def command(self) -> Run:
        """What an engine is told that is to go on with it."""
        return Run(self.number, self.order, self.sent)

    def queued(self, request_id: str, report: Queued) -> bool:
        """Accepts the stream, or tells it that it has moved. As all of these: False when its client does not read."""
        if self.place is None:
            self.charge(report.prompt_tokens)
            self.place = report.position
            return self.events.put(Accepted(request_id, report.position, report.eta_seconds))
        ahead = min(report.position, self.place)
        return self.events.put(Progress(Phase.QUEUED, self.place - ahead, self.place, report.eta_seconds))

    def deliver(self, delta: Delta) -> bool:
        """Puts a delta out. From here on a replay goes on behind its tokens."""
        self.charge(len(delta.token_ids))
        self.sent.extend(delta.token_ids)
        return self.events.put(delta)

    def progress(self, phase: Phase, done: int = 0, total: int = 0) -> bool:
        """Tells the client what is happening."""
        return self.events.put(Progress(phase, done, total))

    def finish(self, finished: Finished) -> None:
        """Ends the stream."""
        self.events.put(finished)

    def fail(self, error: NvstreamError) -> None:
        """Ends the stream with an error."""
        self.events.put(error)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text on its way to token ids."""

    number: int
    order: EncodeOrder
    answer: asyncio.Future[Encoded]

    @property
    def command(self) -> Encode:
        """What an engine is told that is to encode it."""
        return Encode(self.number, self.order)

    def succeed(self, encoded: Encoded) -> None:
        """Hands the ids to whoever waits."""
        if not self.answer.done():
            self.answer.set_result(encoded)

    def fail(self, error: NvstreamError) -> None:
        """Hands the error to whoever waits."""
        if not self.answer.done():
            self.answer.set_exception(error)
