"""What does the daemon keep of a request, so that another engine can go on with it?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import Run

Event = public.StreamEvent | NvstreamError


@dataclass(slots=True, eq=False)
class Stream:
    """One client's stream: what was asked, which tokens it has been given, and the events it has yet to take."""

    run: Run
    accepted: bool = False
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def deliver(self, delta: public.Delta) -> None:
        """Puts a delta out. From here on a replay goes on behind its tokens."""
        self.run.sent_token_ids.extend(delta.token_ids)
        self.events.put_nowait(public.StreamEvent(delta=delta))

    def progress(self, phase: public.Phase.ValueType, done: int = 0, total: int = 0) -> None:
        """Tells the client what is happening."""
        self.events.put_nowait(public.StreamEvent(progress=public.Progress(phase=phase, done=done, total=total)))

    def fail(self, error: NvstreamError) -> None:
        """Ends the stream with an error."""
        self.events.put_nowait(error)
