"""How does a loaded engine serve? Commands in between passes, passes while there is work.

One thread receives: it tokenises and queues. The main thread runs passes and sends what they yield. It looks at the
commands before every pass, so a cancelled request takes part in no further one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine import sampling
from nvstreamd.engine.channel import Channel
from nvstreamd.engine.load import Loaded
from nvstreamd.engine.output import Piece
from nvstreamd.engine.prompts import Prompts
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Scheduler, Work
from nvstreamd.engine.usage import usage_message
from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import Ended, FromEngine, Prefilled, Queued, Stats, ToEngine, Tokens

Command = Callable[[], None]
STATS_SECONDS = 0.05


def verdict_on(request: Request) -> tuple[public.FinishReason.ValueType, str | None] | None:
    """Why a request has come to its end (and by which stop string), None while it goes on."""
    if request.stopped_by is not None:
        return public.FINISH_REASON_STOP, request.stopped_by
    if request.constraint is not None and request.constraint.complete:
        return public.FINISH_REASON_END, None
    if request.generated >= request.max_tokens:
        return public.FINISH_REASON_LENGTH, None
    if len(request.tokens) >= request.limit:
        return public.FINISH_REASON_CONTEXT, None
    return None


class Server:
    """Serves one model until the daemon closes the channel or an error is fatal."""

    def __init__(self, channel: Channel, loaded: Loaded, prompts: Prompts, scheduler: Scheduler) -> None:
        self.channel = channel
        self.loaded = loaded
        self.prompts = prompts
        self.scheduler = scheduler
        self.requests: dict[int, Request] = {}
        self.places: dict[int, int] = {}
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.passes = 0
        self.tokens = 0
        self.pass_seconds: deque[float] = deque(maxlen=32)
        self.reported = 0.0

    def serve(self) -> None:
        """Returns when the daemon is gone. Raises NvstreamError when the model cannot go on."""
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        while self._obey():
            work = self.scheduler.next_pass()
            self._announce_moves()
            if work:
                self._pass(work)

    def _receive(self) -> None:
        while (command := self.channel.receive()) is not None:
            self._take(command)
        self.commands.put(None)

    def _take(self, command: ToEngine) -> None:
        kind = command.WhichOneof("command")
        try:
            if kind == "run":
                request = self.prompts.request(command.run)
                self.commands.put(lambda: self._add(request))
            elif kind == "cancel":
                self.commands.put(lambda: self._cancel(command.cancel.id))
            elif kind == "encode":
                self.channel.send(FromEngine(encoded=self.prompts.encode(command.encode)))
        except NvstreamError as error:
            self.channel.fail(error, command.run.id if kind == "run" else command.encode.id)

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

    def _add(self, request: Request) -> None:
        self.requests[request.id] = request
        verdict = verdict_on(request)
        if verdict is not None:
            self._end(request, *verdict)
            return
        try:
            self._announce(request, self.scheduler.add(request))
        except NvstreamError as error:
            self._drop(request)
            self.channel.fail(error, request.id)

    def _announce(self, request: Request, position: int) -> None:
        """Says where in the queue a request is; 0: it takes part in the next pass."""
        self.places[request.id] = position
        self.channel.send(FromEngine(queued=Queued(id=request.id, position=position, eta_seconds=self._eta(position))))

    def _announce_moves(self) -> None:
        for position, request in enumerate(self.scheduler.waiting, start=1):
            if self.places.get(request.id) != position:
                self._announce(request, position)

    def _eta(self, position: int) -> float | None:
        """Seconds until a request at this place of the queue begins, were all to use the tokens they asked for."""
        if not self.pass_seconds:
            return None
        if position == 0:
            return 0.0
        left = sorted(r.max_tokens - r.generated for r in self.scheduler.running)
        return sum(self.pass_seconds) / len(self.pass_seconds) * (left[min(position, len(left)) - 1] if left else 1)

    def _cancel(self, number: int) -> None:
        request = self.requests.get(number)
        if request is not None:
            self._drop(request)

    def _pass(self, work: list[Work]) -> None:
        start = time.monotonic()
        for item in work:
            item.request.admitted = item.request.admitted or start
        before = self.loaded.streamer.counters.resident_bytes
        logits = self.loaded.runner.run(work)
        seconds = time.monotonic() - start
        self.passes += 1
        self.scheduler.computed(work)
        resident = self.loaded.streamer.counters.resident_bytes - before
        rows = iter(logits)
        vocabulary = self.prompts.tokenizer.vocab_size
        for item in work:
            self._account(item, resident)
            if item.samples:
                # An embedding may have more rows than the tokenizer has tokens: no text has those.
                self._sample(item.request, next(rows)[:vocabulary])
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

    def _sample(self, request: Request, row: np.ndarray) -> None:
        try:
            allowed = request.constraint.allowed() if request.constraint is not None else None
            token = sampling.choose(row, request.tokens, request.sampling, allowed, request.prompt_length)
        except NvstreamError as error:
            self._drop(request)
            self.channel.fail(error, request.id)
            return
        request.first_token = request.first_token or time.monotonic()
        detail = self._logprob(request, row, token)
        self._accept(request, token, detail)

    def _logprob(self, request: Request, row: np.ndarray, token: int) -> public.TokenLogprob | None:
        if request.logprobs is None:
            return None
        own, top = sampling.logprobs(row, token, request.logprobs)
        return public.TokenLogprob(token_id=token, logprob=own,
                                   top=[public.TopLogprob(token_id=t, logprob=p) for t, p in top])

    def _accept(self, request: Request, token: int, detail: public.TokenLogprob | None) -> None:
        """Appends a token, shows what may be shown, and ends the request when this was its last."""
        self.tokens += 1
        if not request.ignore_eos and token in self.prompts.tokenizer.eog_ids:
            self._end(request, public.FINISH_REASON_END)
            return
        request.tokens.append(token)
        request.details.append(detail) if detail is not None else None
        if request.constraint is not None:
            request.constraint.advance([token])
        piece = request.output.push(token)
        if piece is not None:
            self._show(request, piece)
            request.stopped_by = piece.stop
        verdict = verdict_on(request)
        if verdict is not None:
            self._end(request, *verdict)

    def _show(self, request: Request, piece: Piece) -> None:
        details = [request.details.popleft() for _ in piece.tokens] if request.details else []
        delta = public.Delta(token_ids=piece.tokens, text=piece.text, logprobs=details)
        self.channel.send(FromEngine(tokens=Tokens(id=request.id, delta=delta)))

    def _end(self, request: Request, reason: public.FinishReason.ValueType, stop: str | None = None) -> None:
        rest = request.output.flush()
        if rest is not None:
            self._show(request, rest)
        self._drop(request)
        finished = public.Finished(reason=reason, stop_match=stop, usage=usage_message(request))
        self.channel.send(FromEngine(ended=Ended(id=request.id, finished=finished)))

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
            tokens_generated=self.tokens,
            kv_pages_used=self.scheduler.pages.used,
            kv_pages_total=self.scheduler.pages.count,
            pass_seconds=float(np.median(self.pass_seconds)) if self.pass_seconds else None,
            peak_weight_bytes=self.loaded.slots.used,
        )))

