"""How does a loaded engine serve? Commands in between passes, passes while there is work.

The main thread runs passes and sends what they yield. It looks at the commands before every pass, so a cancelled
request takes part in no further one. Calls are received and prepared by other threads.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from contextlib import ExitStack

import numpy as np

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.delivery import Delivery
from nvstreamd.engine.heart import Heart, Signs
from nvstreamd.engine.load import Loaded
from nvstreamd.engine.preparation.forks import Forks
from nvstreamd.engine.preparation.preparer import Preparer
from nvstreamd.engine.prompts import Prompts
from nvstreamd.engine.receiver import Command, Receiver
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.engine.threads import ThreadLost, Threads
from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import Encoded, FromEngine, Prefilled, Queued, Stats, UserLoad

STATS_SECONDS = 0.05
# Of how many narrow passes the pace is taken.
PACE_PASSES = 32


class Server:
    """Serves one model until the daemon closes the channel or an error is fatal. Hears what becomes of calls."""

    def __init__(self, channel: Channel, loaded: Loaded, prompts: Prompts, scheduler: Scheduler, forks: Forks) -> None:
        self.channel = channel
        self.loaded = loaded
        self.scheduler = scheduler
        self.requests: dict[int, Request] = {}
        self.places: dict[int, int] = {}
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.delivery = Delivery(channel, prompts.tokenizer, self._drop)
        self.threads = Threads(self._end_by)
        self.preparer = Preparer(prompts, forks, self, self.threads.run)
        self.receiver = Receiver(channel, self.preparer, self.commands, self._cancel)
        self.passes = 0
        self.obeyed = 0
        self.pass_began: float | None = None
        self.pass_seconds: deque[float] = deque(maxlen=PACE_PASSES)
        self.reported = 0.0
        self.announced = -1

    def serve(self, heart: Heart, stack: ExitStack) -> None:
        """Returns when the daemon is gone. Raises NvstreamError when the model cannot go on, ThreadLost."""
        heart.signs, heart.failed = self.signs, self._end_by
        self.preparer.start(stack)
        self.threads.run("receive", self.receiver.receive)
        while self._obey():
            work = self.scheduler.next_pass()
            self._announce_moves()
            if work:
                self._pass(work)

    def ready(self, request: Request) -> None:
        """Takes a request that was prepared; called by another thread, as are `encoded` and `failed`."""
        self.commands.put(lambda: self._add(request))

    def encoded(self, answer: Encoded) -> None:
        """Sends the ids of a text."""
        self.channel.send(FromEngine(encoded=answer))

    def failed(self, call: int, error: NvstreamError) -> None:
        """Sends the failure of a call."""
        self.channel.fail(error, call)

    def signs(self) -> Signs:
        """What is done at the moment; read by another thread."""
        counters = self.loaded.streamer.counters
        steps = self.passes + self.obeyed + counters.streamed_bytes + counters.resident_bytes
        return Signs(steps, not self.scheduler.idle or not self.commands.empty(), self.pass_began)

    def _end_by(self, error: ThreadLost) -> None:
        """Ends the engine from another thread."""

        def end() -> None:
            raise error

        self.commands.put(end)

    def _obey(self) -> bool:
        """Runs the commands that have come; waits for one when there is nothing else to do. False: the end."""
        while True:
            if self.scheduler.idle:
                self._send_stats()
            try:
                command = self.commands.get(block=self.scheduler.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            self.obeyed += 1

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
            self._announce(request, 0, 0.0)

    def _announce(self, request: Request, position: int, eta: float | None) -> None:
        """Says where in the queue a request is; 0: it takes part in the next pass."""
        if self.places.get(request.id) != position:
            self.places[request.id] = position
            self.channel.send(FromEngine(queued=Queued(
                id=request.id, position=position, eta_seconds=eta if self.pass_seconds else None,
                prompt_tokens=request.prompt_length)))

    def _announce_moves(self) -> None:
        """Tells those who wait when their turn has moved."""
        if self.scheduler.changes == self.announced:
            return
        pace = sum(self.pass_seconds) / len(self.pass_seconds) if self.pass_seconds else 1.0
        for position, (request, passes) in enumerate(self.scheduler.forecast(pace), start=1):
            self._announce(request, position, passes * pace)
        self.announced = self.scheduler.changes

    def _cancel(self, number: int) -> None:
        request = self.requests.get(number)
        if request is not None:
            self._drop(request)

    def _pass(self, work: list[Work]) -> None:
        start = self.pass_began = time.monotonic()
        for item in work:
            item.request.admitted = item.request.admitted or start
        before = self.loaded.streamer.counters.resident_bytes
        logits = self.loaded.runner.run(work)
        seconds = time.monotonic() - start
        self.passes += 1
        self.pass_began = None
        self.scheduler.computed(work, seconds)
        resident = self.loaded.streamer.counters.resident_bytes - before
        rows = iter(logits)
        vocabulary = self.delivery.tokenizer.vocab_size
        for item in work:
            self._account(item, resident)
            if item.samples:
                # An embedding may have more rows than the tokenizer has tokens: no text has those.
                began = time.monotonic()
                self.delivery.sample(item.request, next(rows)[:vocabulary])
                self.scheduler.sampled(item.request, time.monotonic() - began)
            else:
                done = min(item.request.computed, item.request.prompt_length)
                self.channel.send(FromEngine(
                    prefilled=Prefilled(id=item.request.id, done=done, total=item.request.prompt_length)))
        if all(item.count == 1 for item in work):
            self.pass_seconds.append(seconds)
        if time.monotonic() - self.reported >= STATS_SECONDS:
            self._send_stats()

    def _account(self, item: Work, resident: int) -> None:
        item.request.passes += 1
        item.request.resident_bytes += resident
        item.request.streamed_bytes += self.loaded.plan.streamed_bytes

    def _drop(self, request: Request) -> None:
        self.requests.pop(request.id, None)
        self.places.pop(request.id, None)
        self.scheduler.remove(request)

    def _send_stats(self) -> None:
        """While passes run a few times a second: each report costs the daemon as much as a token does."""
        self.reported = time.monotonic()
        counters = self.loaded.streamer.counters
        self.channel.send(FromEngine(stats=Stats(
            running=len(self.scheduler.running),
            queued=len(self.scheduler.waiting),
            passes=self.passes,
            streamed_bytes=counters.streamed_bytes,
            tokens_generated=self.delivery.tokens,
            kv_pages_used=self.scheduler.pages.used,
            kv_pages_total=self.scheduler.pages.count,
            pass_seconds=float(np.median(self.pass_seconds)) if self.pass_seconds else None,
            peak_weight_bytes=self.loaded.slots.used,
            users=self._loads(),
        )))

    def _loads(self) -> list[UserLoad]:
        running = Counter(request.share for request in self.scheduler.running)
        return [UserLoad(uid=uid, running=running[uid], queued=self.scheduler.waiting.count(uid),
                         served_seconds=self.scheduler.served(uid)) for uid in sorted(self.scheduler.uids)]
