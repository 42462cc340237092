"""How does a call that was prepared become work, and how does it leave? Other threads hear of it, the main one acts."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from google.protobuf.message import Message

from nvstreamd.engine.announce import Announcer
from nvstreamd.engine.channel import Channel
from nvstreamd.engine.delivery import Delivery
from nvstreamd.engine.receiver import Command
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler
from nvstreamd.engine.to_daemon import encoded_message
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.errors import NvstreamError


class Intake:
    """The requests that live, by id. `ready`, `encoded` and `failed` hear from the threads that prepare calls.

    `ended` is told of each that lives no more.
    """

    def __init__(self, channel: Channel, tokenizer: Tokenizer, scheduler: Scheduler, announcer: Announcer,
                 commands: SimpleQueue[Command | None], ended: Callable[[Request], None]) -> None:
        self.channel = channel
        self.scheduler = scheduler
        self.announcer = announcer
        self.requests: dict[int, Request] = {}
        self.delivery = Delivery(channel, tokenizer, self._drop)
        self._commands = commands
        self._ended = ended

    def ready(self, request: Request) -> None:
        """Lets the main thread take a request that was prepared, before its next pass."""
        self._commands.put(lambda: self._add(request))

    def encoded(self, call: int, response: Message) -> None:
        """Sends the ids of a text, as its worker has packed them."""
        self.channel.send(encoded_message(call, response))

    def failed(self, call: int, error: NvstreamError) -> None:
        """Sends the failure of a call."""
        self.channel.fail(error, call)

    def cancel(self, number: int) -> None:
        """Drops a request; nothing happens when it has ended. Called by the main thread."""
        request = self.requests.get(number)
        if request is not None:
            self._drop(request)

    def _add(self, request: Request) -> None:
        self.requests[request.id] = request
        if not self.delivery.begin(request):
            return
        try:
            self.scheduler.add(request)
        except NvstreamError as error:
            self.delivery.fail(request, error)
            return
        if request in self.scheduler.running:
            self.announcer.announce(request, 0, 0.0)

    def _drop(self, request: Request) -> None:
        self.requests.pop(request.id, None)
        self.announcer.forget(request)
        self.scheduler.remove(request)
        self._ended(request)
