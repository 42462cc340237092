"""Who takes part in the next pass, and with how many tokens? Pure: no tensors, no sockets, no clock of its own.

Every running request that decodes gets its token in each pass; beside them prompts get a chunk of tokens, of the user
who has been served least first. So a long prompt costs the others a bounded share of a pass, never a stall.

A user who has fewer slots than their share gets one at once, from whoever has more; where all have one, whoever is
behind gets a turn after a while. What gives up its slot, or its pages when they run out, is computed again later: its
result does not change by that. The oldest is never asked for its pages, and nobody for a turn again before they got
clearly further than the last time, so requests come to their end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.engine.fair import Counters, shares_of_pass
from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.queue import Passes, Queue, begins
from nvstreamd.engine.request import Request
from nvstreamd.errors import InvalidRequest

# Passes that a turn lasts, where users take turns.
TURN = 16
# Tokens by which one gets further, at most, before its next turn may end.
MOST_AGAIN = 4 * TURN
# Of a pass, before one was measured.
UNKNOWN_SECONDS = 0.1
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    """`count` tokens of `request` from `begin` on; `samples`: the last of them yields a token."""

    request: Request
    begin: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the pass reaches the end of what is known of the sequence."""
        return self.begin + self.count == len(self.request.tokens)


class Scheduler:
    """The queue and the running set, in the order of their admission."""

    def __init__(self, pages: KvPages, max_running: int, prefill_chunk: int) -> None:
        self.pages = pages
        self.max_running = max_running
        self.prefill_chunk = prefill_chunk
        # By class: one that waits for all others says nothing about what those had.
        self.counters = {batch: Counters() for batch in (False, True)}
        self._after_pass = {batch: defaultdict[int, float](float) for batch in (False, True)}
        self.waiting = Queue(self.counters)
        self.running: list[Request] = []
        self.narrow_seconds: float | None = None
        # Counts what changes the order of turns, so that nobody has to look every pass.
        self.changes = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.waiting and not self.running

    @property
    def uids(self) -> set[int]:
        """Users who have requests here."""
        return self.waiting.uids | {request.share for request in self.running}

    def served(self, uid: int) -> float:
        """Seconds of passes that a user here has had, over their weight."""
        return sum(counters.served(uid) for counters in self.counters.values())

    def add(self, request: Request) -> None:
        """Queues a request; it takes part from the next pass on if its turn has come.

        Raises InvalidRequest when a sequence of its `limit` cannot fit even alone: it would wait for ever.
        """
        # The last token of a sequence is never computed: nothing follows it.
        needed = self._pages_for(request.limit - 1)
        if needed > self.pages.count:
            raise InvalidRequest(f"{request.limit} tokens take {needed} KV pages, there are {self.pages.count}",
                                 "load the model with a larger kv_budget", field="prompt")
        self.counters[request.batch].arrive(request.share)
        self.waiting.put(request)
        self.changes += 1
        self._admit()

    def remove(self, request: Request) -> None:
        """Forgets a request and gives its pages back; nothing happens when it has ended already."""
        self.changes += 1
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        for counters in self.counters.values():
            counters.leave(request.share, self.uids)

    def next_pass(self) -> list[Work]:
        """The work of the next pass; empty when idle."""
        self._admit()
        work: list[Work] = []
        room = self.prefill_chunk
        for request in [r for r in self.running if r.pending == 1]:
            if request in self.running and self._reserve(request, 1):
                work.append(Work(request, request.computed, 1))
        prompts = [r for r in self.running if r.pending > 1]
        for request in sorted(prompts, key=self.waiting.rank):
            count = min(request.pending, room)
            if request in self.running and count > 0 and self._reserve(request, count):
                work.append(Work(request, request.computed, count))
                room -= count
        return [item for item in work if item.request in self.running]

    def computed(self, work: Sequence[Work], seconds: float = 0.0) -> None:
        """Notes that the keys and values of `work` are there, and charges their users what the pass took.

        A request removed meanwhile is passed over.
        """
        if work and all(item.count == 1 for item in work):
            before = seconds if self.narrow_seconds is None else self.narrow_seconds
            self.narrow_seconds = before + SMOOTHING * (seconds - before)
        if work:
            self._charge(work, seconds)
        for item in work:
            request = item.request
            if request not in self.running:
                continue
            request.computed = item.begin + item.count
            if item.begin < request.prompt_length <= request.computed:
                self.pages.remember(request.uid, request.tokens[: request.computed], request.pages)

    def sampled(self, request: Request, seconds: float) -> None:
        """Charges a user, with the next pass, for what came after this one: options decide how long a choice takes."""
        self._after_pass[request.batch][request.share] += seconds / request.weight

    def _charge(self, work: Sequence[Work], seconds: float) -> None:
        caused = shares_of_pass([item.count for item in work], seconds, self.narrow_seconds or 0.0)
        in_prefill = [request for request in self.running if request.pending > 1]
        for batch, counters in self.counters.items():
            costs, self._after_pass[batch] = self._after_pass[batch], defaultdict(float)
            for item, cost in zip(work, caused, strict=True):
                if item.request.batch == batch:
                    costs[item.request.share] += cost / item.request.weight
            counters.charge(costs, {request.share for request in (*self.waiting.heads, *in_prefill)
                                    if request.batch == batch})

    def forecast(self, pass_seconds: float) -> list[tuple[Request, int]]:
        """What waits in the order of its turns, and in how many passes each begins at the latest."""
        passes = Passes(self.prefill_chunk, pass_seconds, self.max_running)
        waiting = list(self.waiting.in_order(passes))
        return list(zip(waiting, begins(self.running, waiting, self.max_running, passes), strict=True))

    def _admit(self) -> None:
        while (request := self.waiting.head()) is not None:
            if len(self.running) >= self.max_running and not self._make_way(request):
                return
            found = self.pages.match(request.uid, request.tokens)
            computed = len(found) * self.pages.page_tokens
            # One whose first chunk has no room would be preempted at once, in every pass again; one that had more
            # before, where it was then.
            first = min(len(request.tokens), max(computed + self.prefill_chunk, request.furthest + 1))
            while self.running and self._pages_for(first) - len(found) > self.pages.available:
                if not self._make_way(request):
                    self.pages.release(found)
                    return
            self.changes += 1
            self.waiting.remove(request)
            request.pages = found
            request.computed = computed
            if not request.preemptions:
                request.cached = min(computed, request.prompt_length)
            self.running.append(request)

    def _make_way(self, request: Request) -> bool:
        """Ends the turn of another user's request, if that is fair. False: `request` has to wait."""
        own = sum(r.share == request.share for r in self.running)
        for victim in sorted(reversed(self.running), key=self.waiting.rank, reverse=True):
            if victim.share != request.share and self._gives_way(victim, request, own):
                self._preempt(victim)
                return True
        return False

    def _gives_way(self, victim: Request, request: Request, own: int) -> bool:
        """Whether a running request is one too many of its user's, or has had its turn."""
        if victim.batch != request.batch:
            return victim.batch
        theirs = sum(r.share == victim.share for r in self.running)
        if theirs > 1 and (own == 0 or (own + 1) / request.weight <= (theirs - 1) / victim.weight):
            return True
        counters = self.counters[request.batch]
        ahead = counters.served(victim.share) - counters.served(request.share)
        turn = TURN * (self.narrow_seconds or UNKNOWN_SECONDS) / self.max_running
        return own == 0 and ahead > turn and self._got_further(victim)

    def _got_further(self, request: Request) -> bool:
        """Whether a request that was preempted has got beyond where it was by about what it took to get there again.

        By less than that passes would go into the same tokens over and over, and nobody who needs many would end.
        """
        again = min(MOST_AGAIN, request.furthest // self.prefill_chunk)
        return request.computed > request.furthest + again

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pages.page_tokens)

    def _reserve(self, request: Request, count: int) -> bool:
        """Pages for `count` more tokens, if need be of others, who were served more or came later. False: its own."""
        while True:
            missing = self._pages_for(request.computed + count) - len(request.pages)
            taken = self.pages.take(max(0, missing))
            if taken is not None:
                request.pages.extend(taken)
                return True
            last = max(enumerate(self.running[1:]), key=lambda each: (self.waiting.rank(each[1]), each[0]))[1]
            self._preempt(last)
            if last is request:
                return False

    def _preempt(self, request: Request) -> None:
        self.changes += 1
        self.running.remove(request)
        request.furthest = max(request.furthest, request.computed)
        self._release(request)
        request.preemptions += 1
        self.waiting.put_back(request)

    def _release(self, request: Request) -> None:
        self.pages.remember(request.uid, request.tokens[: request.computed], request.pages)
        self.pages.release(request.pages)
        request.pages = []
        request.computed = 0
