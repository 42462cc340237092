"""Who takes part in the next pass, and with how many tokens? Pure: no tensors, no sockets, no clock of its own.

Every running request that decodes gets its token in each pass; beside them prompts get as many tokens as `pacing` says,
of the user who has been served least first. So a long prompt costs the others a bounded part of a pass, never a stall.

A user who has fewer slots than their share gets one at once, from a user who has more. Where every user has one, the
user who is behind gets a turn after a while. A request gives up its slot for that, or its pages when they run out. It
is computed again later, and its result does not change by that. The oldest request never gives up its pages. A request
that gave up its slot for a turn is not asked again until it got clearly further. So requests come to their end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.engine.fair import Tally, shares_of_pass
from nvstreamd.engine.kv_cache import KvCache
from nvstreamd.engine.pacing import Overrun, Pacing
from nvstreamd.engine.queue import Passes, Queue, begins
from nvstreamd.engine.request import Request
from nvstreamd.errors import InvalidRequest

# Passes that a turn lasts, where users take turns.
TURN = 16
# Tokens by which one gets further, at most, before its next turn may end.
MOST_AGAIN = 4 * TURN
# Tokens of a prompt that others make way for: the rest of a pass's share is for pages that are free.
FIRST = 64
# Of a pass, before one was measured.
UNKNOWN_SECONDS = 0.1
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    """`count` tokens of `request` from `begin` on, and the tokens of `draft`, which are guessed to follow.

    Where it `samples`, the last of the tokens yields one, and so does each of the draft that proves right.
    """

    request: Request
    begin: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of a pass that it takes."""
        return self.count + len(self.draft)

    @property
    def samples(self) -> bool:
        """True when the pass reaches the end of what is known of the sequence."""
        return self.begin + self.count == len(self.request.tokens)


class Scheduler:
    """The queue and the running set, in the order of their admission."""

    def __init__(self, kv: KvCache, max_running: int, pacing: Pacing) -> None:
        self.kv = kv
        self.max_running = max_running
        self.pacing = pacing
        # By class: one that waits for all others says nothing about what those had.
        self.tallies = {batch: Tally() for batch in (False, True)}
        self._after_pass = {batch: defaultdict[int, float](float) for batch in (False, True)}
        self.waiting = Queue(self.tallies)
        self.running: list[Request] = []
        self.narrow_seconds: float | None = None
        self._overrun = Overrun()
        # In the last pass: users with prompts for each user who decodes.
        self._waiting = 1.0
        # Counts what changes the order of turns, so that nobody has to look every pass.
        self.changes = 0

    @property
    def idle(self) -> bool:
        """True when there is nothing to compute."""
        return not self.waiting and not self.running

    @property
    def uids(self) -> set[int]:
        """Users who have requests here."""
        return self.waiting.uids | {request.share for request in self.running}

    def served(self, uid: int) -> float:
        """Seconds of passes that a user here has had, over their weight."""
        return sum(tally.served(uid) for tally in self.tallies.values())

    def add(self, request: Request) -> None:
        """Queues a request; it takes part from the next pass on if its turn has come.

        Raises InvalidRequest when a sequence of its `limit` cannot fit even alone: it would wait for ever.
        """
        # The last token of a sequence is never computed: nothing follows it.
        lacking = self.kv.lacking(request.limit - 1, FIRST)
        if lacking is not None:
            raise InvalidRequest(f"{request.limit} tokens take {lacking[0]} KV pages, there are {lacking[1]}",
                                 "load the model with a larger kv_budget", field="prompt")
        self.tallies[request.batch].arrive(request.share)
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
        for tally in self.tallies.values():
            tally.leave(request.share, self.uids)

    def next_pass(self) -> list[Work]:
        """The work of the next pass; empty when idle."""
        self._admit()
        work: list[Work] = []
        for request in [r for r in self.running if r.pending == 1]:
            if request in self.running and self._reserve(request, 1):
                work.append(Work(request, request.computed, 1))
        prompts = [r for r in self.running if r.pending > 1]
        self._waiting = _each({r.share for r in prompts}, {item.request.share for item in work})
        room = self.pacing.tokens(len(work), self._waiting) if prompts and not (work and self._overrun.due) else 0
        for request in sorted(prompts, key=self.waiting.rank):
            count = min(request.pending, room, self._fits(request))
            if request in self.running and count > 0 and self._reserve(request, count):
                work.append(Work(request, request.computed, count))
                room -= count
        return [item for item in work if item.request in self.running]

    def computed(self, work: Sequence[Work], seconds: float = 0.0, waits: Sequence[float] = ()) -> None:
        """Notes that the keys and values of `work` are there, and charges their users what the pass took.

        For so many of its seconds it waited for what each of them caused. A request removed meanwhile is passed over.
        """
        if work and all(item.rows == 1 for item in work):
            # What it waited for was some requests' own, which is charged to them.
            shared = max(0.0, seconds - sum(waits))
            before = shared if self.narrow_seconds is None else self.narrow_seconds
            self.narrow_seconds = before + SMOOTHING * (shared - before)
        if work:
            self._charge(work, seconds, waits)
        decoding = sum(item.count == 1 and item.samples for item in work)
        if decoding:
            rows = sum(item.count for item in work)
            self._overrun.saw(seconds, rows, decoding, self.pacing, self._waiting)
        for item in work:
            request = item.request
            if request not in self.running:
                continue
            request.computed = item.begin + item.count
            if item.begin < request.prompt_length <= request.computed:
                self.kv.remember(request.uid, request.tokens[: request.computed], request.kept)
            self.kv.forget(request.uid, request.tokens[: request.computed], request.kept)

    def verified(self, item: Work, right: int) -> None:
        """Notes that so many of the guessed tokens were right: their keys and values are there."""
        if right and item.request in self.running:
            item.request.computed = item.begin + item.count + right

    def sampled(self, request: Request, seconds: float) -> None:
        """Charges a user, with the next pass, for what came after this one: options decide how long a choice takes."""
        self._after_pass[request.batch][request.share] += seconds / request.weight

    def _charge(self, work: Sequence[Work], seconds: float, waits: Sequence[float]) -> None:
        caused = shares_of_pass([item.rows for item in work], seconds, self.narrow_seconds or 0.0, waits)
        in_prefill = [request for request in self.running if request.pending > 1]
        for batch, tally in self.tallies.items():
            costs, self._after_pass[batch] = self._after_pass[batch], defaultdict(float)
            for item, cost in zip(work, caused, strict=True):
                if item.request.batch == batch:
                    costs[item.request.share] += cost / item.request.weight
            tally.charge(costs, {request.share for request in (*self.waiting.heads, *in_prefill)
                                    if request.batch == batch})

    def forecast(self, pass_seconds: float) -> list[tuple[Request, int]]:
        """The waiting requests in the order of their turns, and in how many passes each begins at the latest."""
        passes = Passes(self.pacing.tokens(self._decoding()), pass_seconds, self.max_running)
        waiting = list(self.waiting.in_order(passes))
        return list(zip(waiting, begins(self.running, waiting, self.max_running, passes), strict=True))

    def _admit(self) -> None:
        while (request := self.waiting.head()) is not None:
            if len(self.running) >= self.max_running and not self._make_way(request):
                return
            found, computed = self.kv.match(request.uid, request.tokens)
            # One whose first chunk has no room would be preempted at once, in every pass again; one that had more
            # before, where it was then.
            first = min(len(request.tokens), max(computed + self._first(), request.furthest + 1))
            while self.running and not self.kv.has_room(found, first):
                if not self._make_way(request):
                    self.kv.release(found)
                    return
            self.changes += 1
            self.waiting.remove(request)
            request.kept = found
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
        """True when a running request is one too many of its user's, or has had its turn."""
        if victim.batch != request.batch:
            return victim.batch
        theirs = sum(r.share == victim.share for r in self.running)
        if theirs > 1 and (own == 0 or (own + 1) / request.weight <= (theirs - 1) / victim.weight):
            return True
        tally = self.tallies[request.batch]
        ahead = tally.served(victim.share) - tally.served(request.share)
        turn = TURN * (self.narrow_seconds or UNKNOWN_SECONDS) / self.max_running
        return own == 0 and ahead > turn and self._got_further(victim)

    def _got_further(self, request: Request) -> bool:
        """True once a preempted request is past the place where it was, by about as many passes as the way back took.

        With less than that, passes would go into the same tokens over and over, and no long request would ever end.
        """
        again = min(MOST_AGAIN, request.furthest // self._first())
        return request.computed > request.furthest + again

    def _fits(self, request: Request) -> int:
        """The tokens that a prompt may bring without taking pages from others: some may be had from them, not more."""
        return max(self.kv.room(request.kept) - request.computed, self._first())

    def _first(self) -> int:
        return min(FIRST, self.pacing.tokens(self._decoding()))

    def _decoding(self) -> int:
        return sum(request.pending == 1 for request in self.running)

    def _reserve(self, request: Request, count: int) -> bool:
        """Gets pages for `count` more tokens, if need be from users who were served more, or requests that came later.

        Returns False when the request gave up its own.
        """
        while True:
            if self.kv.grow(request.kept, request.computed + count):
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
        self.kv.remember(request.uid, request.tokens[: request.computed], request.kept)
        self.kv.release(request.kept)
        request.computed = 0


def _each(waiting: set[int], decoding: set[int]) -> float:
    """How many users wait with prompts for each who decodes, at least 1: however many requests somebody has."""
    return max(1.0, len(waiting) / max(1, len(decoding)))
