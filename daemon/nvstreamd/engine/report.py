"""What does an engine report of itself while it serves? Its load, its passes, what they move: for `status`."""

from __future__ import annotations

import time
from collections import Counter

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.delivery import Delivery
from nvstreamd.engine.load import Loaded
from nvstreamd.engine.reports import Stats, UserLoad
from nvstreamd.engine.scheduler import Scheduler
from nvstreamd.engine.speculation.drafts import Drafts
from nvstreamd.engine.to_daemon import stats_message

STATS_SECONDS = 0.05


class Reporter:
    """Sends Stats. `passes` counts those that have come to their end."""

    def __init__(self, channel: Channel, loaded: Loaded, scheduler: Scheduler, delivery: Delivery,
                 drafts: Drafts) -> None:
        self.channel = channel
        self.loaded = loaded
        self.scheduler = scheduler
        self.delivery = delivery
        self.drafts = drafts
        self.passes = 0
        self._reported = 0.0

    def report_now_and_then(self) -> None:
        """Reports a few times a second while passes run: each report costs the daemon as much as a token does."""
        if time.monotonic() - self._reported >= STATS_SECONDS:
            self.report()

    def report(self) -> None:
        """Reports in any case."""
        self._reported = time.monotonic()
        counters, expectation = self.loaded.flow.counters, self.loaded.expectation
        experts = self.loaded.flow.experts
        self.channel.send(stats_message(Stats(
            running=len(self.scheduler.running),
            queued=len(self.scheduler.waiting),
            passes=self.passes,
            streamed_bytes=counters.streamed_bytes,
            tokens_generated=self.delivery.tokens,
            kv_pages_used=self.scheduler.kv.used,
            kv_pages_total=self.scheduler.kv.count,
            pass_seconds=expectation.measured_seconds,
            predicted_pass_seconds=expectation.predicted_seconds,
            read_bytes_per_second=expectation.read.value,
            peak_weight_bytes=self.loaded.pool.used,
            users=self._loads(),
            proposed_tokens=self.drafts.proposed,
            accepted_tokens=self.drafts.accepted,
            expert_hits=experts.counters.hits if experts is not None else (),
            expert_misses=experts.counters.misses if experts is not None else (),
        )))

    def _loads(self) -> list[UserLoad]:
        running = Counter(request.share for request in self.scheduler.running)
        return [UserLoad(uid=uid, running=running[uid], queued=self.scheduler.waiting.count(uid),
                         served_seconds=self.scheduler.served(uid)) for uid in sorted(self.scheduler.uids)]
