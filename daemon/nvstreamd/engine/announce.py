"""What is a request told of its place in the queue? Its place when it comes, and each one that it moves to."""

from __future__ import annotations

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.expectation import Expectation
from nvstreamd.engine.reports import Queued
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler
from nvstreamd.engine.to_daemon import queued_message


class Announcer:
    """The places that were announced, by request id. Seconds are said once a pass was measured."""

    def __init__(self, channel: Channel, scheduler: Scheduler, expectation: Expectation) -> None:
        self.channel = channel
        self.scheduler = scheduler
        self.expectation = expectation
        self.places: dict[int, int] = {}
        # The scheduler's count of changes when all were last told.
        self._told = -1

    def announce(self, request: Request, position: int, eta: float) -> None:
        """Says where in the queue a request is, if that is new; 0: it takes part in the next pass. `eta` in seconds."""
        if self.places.get(request.id) != position:
            self.places[request.id] = position
            self.channel.send(queued_message(Queued(
                id=request.id, position=position, prompt_tokens=request.prompt_length,
                eta_seconds=eta if self.expectation.measured_seconds else None)))

    def announce_moves(self) -> None:
        """Tells those who wait when their turn has moved."""
        if self.scheduler.changes == self._told:
            return
        each = self.expectation.measured_seconds or 1.0
        for position, (request, passes) in enumerate(self.scheduler.forecast(each), start=1):
            self.announce(request, position, passes * each)
        self._told = self.scheduler.changes

    def forget(self, request: Request) -> None:
        """Takes a request for one that was never told, as it has ended."""
        self.places.pop(request.id, None)
