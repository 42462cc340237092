"""How does a loaded engine serve? Commands in between passes, passes while there is work.

The main thread runs passes and sends what they yield. It looks at the commands before every pass, so a cancelled
request takes part in no further one. Calls are received and prepared by other threads.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from contextlib import ExitStack

from nvdma.errors import GpuError
from nvstreamd.engine.announce import Announcer
from nvstreamd.engine.answers import prefilled_message
from nvstreamd.engine.channel import Channel
from nvstreamd.engine.heart import Heart, Signs
from nvstreamd.engine.intake import Intake
from nvstreamd.engine.load import Loaded
from nvstreamd.engine.preparation.forks import Forks
from nvstreamd.engine.preparation.preparer import Preparer
from nvstreamd.engine.prompts import Prompts
from nvstreamd.engine.receiver import Command, Receiver
from nvstreamd.engine.report import Reporter
from nvstreamd.engine.runner import Computed
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.engine.speculation.drafts import Drafts
from nvstreamd.engine.threads import ThreadLost, Threads
from nvstreamd.errors import CardLost
from nvstreamd.kernels.arrays import Floats


class Loop:
    """Serves one model until the daemon closes the channel or an error is fatal."""

    def __init__(self, channel: Channel, loaded: Loaded, prompts: Prompts, scheduler: Scheduler, forks: Forks) -> None:
        self.channel = channel
        self.loaded = loaded
        self.scheduler = scheduler
        self.drafts = Drafts(scheduler.kv, scheduler.pacing)
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.announcer = Announcer(channel, scheduler, loaded.expectation)
        self.intake = Intake(channel, prompts.tokenizer, scheduler, self.announcer, self.commands, self.drafts.forget)
        self.delivery = self.intake.delivery
        self.reporter = Reporter(channel, loaded, scheduler, self.delivery, self.drafts)
        self.threads = Threads(self._end_by)
        self.preparer = Preparer(prompts, forks, self.intake, self.threads.run)
        self.receiver = Receiver(channel, self.preparer, self.commands, self.intake.cancel)
        self.obeyed = 0
        self.pass_began: float | None = None

    def serve(self, heart: Heart, stack: ExitStack) -> None:
        """Returns when the daemon is gone. Raises NvstreamError when the model cannot go on, ThreadLost."""
        heart.signs, heart.failed = self.signs, self._end_by
        self.preparer.start(stack)
        self.threads.run("receive", self.receiver.receive)
        while self._obey():
            work = self.drafts.draft(self.scheduler.next_pass())
            self.announcer.announce_moves()
            if work:
                computed = self._run(work)
                self._deliver(work, computed)
                self.reporter.report_now_and_then()

    def signs(self) -> Signs:
        """The signs of what is done at the moment; read by another thread."""
        counters = self.loaded.flow.counters
        steps = self.reporter.passes + self.obeyed + counters.streamed_bytes + counters.resident_bytes
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
                self.reporter.report()
            try:
                command = self.commands.get(block=self.scheduler.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            self.obeyed += 1

    def _run(self, work: Sequence[Work]) -> Computed:
        """Runs a pass, and measures it for whoever is charged for it or expects the next."""
        start = self.pass_began = time.monotonic()
        for item in work:
            item.request.admitted = item.request.admitted or start
        computed = self._computed(work)
        seconds = time.monotonic() - start
        self.reporter.passes += 1
        self.pass_began = None
        self.scheduler.computed(work, seconds, computed.cost.waits)
        # Before tokens are appended: by then nobody samples any more.
        self.loaded.expectation.saw(computed.cost, decode=all(item.count == 1 and item.samples for item in work))
        for item, caused in zip(work, computed.cost.caused, strict=True):
            item.request.account(computed.cost, caused)
        return computed

    def _computed(self, work: Sequence[Work]) -> Computed:
        try:
            return self.loaded.runner.run(work)
        except (GpuError, CardLost) as error:
            lost = error if isinstance(error, CardLost) else CardLost(f"the card failed: {error}", error.hint)
            # Before anything is given back: with such a card that fails, too.
            self.channel.fail(lost)
            raise lost from error

    def _deliver(self, work: Sequence[Work], computed: Computed) -> None:
        """Sends each request's next token, or how far its prompt is."""
        rows = iter(computed.scores)
        vocabulary = self.delivery.tokenizer.vocab_size
        for item in work:
            if not item.samples:
                self.channel.send(prefilled_message(item.request))
                continue
            began = time.monotonic()
            # An embedding may have more rows than the tokenizer has tokens: no text has those.
            self._sample(item, [next(rows)[:vocabulary] for _ in range(1 + len(item.draft))])
            ended = time.monotonic()
            self.scheduler.sampled(item.request, ended - began)
            if self.loaded.trace is not None:
                self.loaded.trace.event("tokens", "sample", began, ended)

    def _sample(self, item: Work, rows: Sequence[Floats]) -> None:
        """Draws the next token, and as many behind it as were guessed right."""
        request, right = item.request, 0
        self.delivery.sample(request, rows[0])
        while right < len(item.draft) and request in self.scheduler.running and request.tokens[-1] == item.draft[right]:
            right += 1
            self.delivery.sample(request, rows[right])
        self.scheduler.verified(item, right)
        if item.draft:
            self.drafts.verified(item, right)
