"""Who takes part in the next pass, and with how many tokens? Pure: no tensors, no sockets, no clock of its own.

Every running request that decodes gets its token in each pass; beside them prompts get a chunk of tokens, oldest
prompt first. So a long prompt costs the others a bounded share of a pass, never a stall. When pages run out, the
request admitted last gives its pages back and is computed again later: its result does not change by that. The oldest
is never asked for its pages, so at least one request comes to its end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.request import Request
from nvstreamd.errors import InvalidRequest


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
    """The queue and the running set."""

    def __init__(self, pages: KvPages, max_running: int, prefill_chunk: int) -> None:
        self.pages = pages
        self.max_running = max_running
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.waiting and not self.running

    def add(self, request: Request) -> int:
        """Queues a request; returns its place in the queue, 0 when it takes part from the next pass on.

        Raises InvalidRequest when a sequence of its `limit` cannot fit even alone: it would wait for ever.
        """
        # The last token of a sequence is never computed: nothing follows it.
        needed = self._pages_for(request.limit - 1)
        if needed > self.pages.count:
            raise InvalidRequest(f"{request.limit} tokens take {needed} KV pages, there are {self.pages.count}",
                                 "load the model with a larger kv_budget", field="prompt")
        self.waiting.append(request)
        self._admit()
        return len(self.waiting) if self.waiting and self.waiting[-1] is request else 0

    def remove(self, request: Request) -> None:
        """Forgets a request and gives its pages back; nothing happens when it has ended already."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def next_pass(self) -> list[Work]:
        """The work of the next pass; empty when idle."""
        self._admit()
        work: list[Work] = []
        decoding = [request for request in self.running if request.pending == 1]
        room = self.prefill_chunk
        for request in decoding:
            if request in self.running and self._reserve(request, 1):
                work.append(Work(request, request.computed, 1))
        for request in [r for r in self.running if r.pending > 1]:
            count = min(request.pending, room)
            if request in self.running and count > 0 and self._reserve(request, count):
                work.append(Work(request, request.computed, count))
                room -= count
        return [item for item in work if item.request in self.running]

    def computed(self, work: list[Work]) -> None:
        """Notes that the keys and values of `work` are there. A request removed meanwhile is passed over."""
        for item in work:
            request = item.request
            if request not in self.running:
                continue
            request.computed = item.begin + item.count
            if item.begin < request.prompt_length <= request.computed:
                self.pages.remember(request.uid, request.tokens[: request.computed], request.pages)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            request = self.waiting[0]
            found = self.pages.match(request.uid, request.tokens)
            computed = len(found) * self.pages.page_tokens
            first = min(len(request.tokens), computed + self.prefill_chunk)
            # One whose first chunk has no room would be preempted at once, in every pass again.
            if self.running and self._pages_for(first) - len(found) > self.pages.available:
                self.pages.release(found)
                return
            self.waiting.popleft()
            request.pages = found
            request.computed = computed
            if not request.preemptions:
                request.cached = min(computed, request.prompt_length)
            self.running.append(request)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pages.page_tokens)

    def _reserve(self, request: Request, count: int) -> bool:
        """Pages for `count` more tokens, if need be from the request admitted last. False: it was that one."""
        while True:
            missing = self._pages_for(request.computed + count) - len(request.pages)
            taken = self.pages.take(max(0, missing))
            if taken is not None:
                request.pages.extend(taken)
                return True
            last = self.running[-1]
            self._preempt(last)
            if last is request:
                return False

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.preemptions += 1
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self.pages.remember(request.uid, request.tokens[: request.computed], request.pages)
        self.pages.release(request.pages)
        request.pages = []
        request.computed = 0
