"""How does a call get from the daemon's command to a request that can be scheduled, and how is it stopped on the way?

A thread a lane: it waits for its worker, so it computes next to nothing in this process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, Protocol

from google.protobuf.message import Message

from nvstreamd.engine.commands import Call, Run
from nvstreamd.engine.preparation.desk import Desk, Job
from nvstreamd.engine.preparation.forks import Forks, ForksLost, NoWorker, Worker
from nvstreamd.engine.preparation.questions import CHEAP, Ask
from nvstreamd.engine.preparation.remembered import Remembered, is_refusal
from nvstreamd.engine.preparation.worker import NICE
from nvstreamd.engine.prompts import Prompts
from nvstreamd.engine.request import Request
from nvstreamd.errors import NvstreamError, RequestCancelled, from_wire, unexpected
from nvstreamd.text import places
from nvstreamd.wire.engine_pb2 import Encoded, FromEngine
from nvstreamd.wire.failures import failure_of

log = logging.getLogger(__name__)

COSTLY_LANES: Final = 2


class Results(Protocol):
    """Who hears what became of a call."""

    def ready(self, request: Request) -> None:
        """A request that can be scheduled."""

    def encoded(self, call: int, response: Message) -> None:
        """The ids of a text, in the message that its client gets."""

    def failed(self, call: int, error: NvstreamError) -> None:
        """The failure of a call."""


class Preparer:
    """Prepares calls for `results`, cheap ones past costly ones. Any thread may `submit` and `cancel`.

    `run_thread` starts a thread whose end is noticed.
    """

    def __init__(self, prompts: Prompts, forks: Forks, results: Results,
                 run_thread: Callable[[str, Callable[[], None]], None]) -> None:
        self.prompts = prompts
        self.forks = forks
        self.results = results
        self._run_thread = run_thread
        self._desk = Desk()
        self._remembered = Remembered()
        self._changed = threading.Condition()
        self._forking = threading.Lock()
        self._open: dict[int, Job] = {}
        self._workers: dict[Job, Worker] = {}
        self._is_over = False

    def start(self, stack: ExitStack) -> None:
        """Starts the lanes; `stack` ends them and their workers."""
        stack.callback(self._end)
        self._run_thread("prepare", lambda: self._serve(False))
        for _ in range(COSTLY_LANES):
            self._run_thread("prepare-costly", lambda: self._serve(True))

    @property
    def has_work(self) -> bool:
        """True while any call is on its way."""
        return bool(self._open)

    def submit(self, call: Call) -> None:
        """Queues a call. Raises InvalidRequest at once for what can be told from its length."""
        asks = self.prompts.questions(call)
        with self._changed:
            cost = sum(ask.cost_with(self._remembered.find(call.uid, ask)) for ask in asks)
            job = Job(call, asks, cost)
            self._open[job.id] = job
            self._desk.put(job)
            self._changed.notify_all()

    def cancel(self, call: int) -> bool:
        """Stops the preparation of a call, and what computes for it; False when it is not under way (any more)."""
        with self._changed:
            job = self._open.pop(call, None)
            if job is None:
                return False
            job.is_cancelled = True
            if not self._desk.remove(job) and job in self._workers:
                self._workers[job].end()
            return True

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            for worker in self._workers.values():
                worker.end()
            self._changed.notify_all()

    def _serve(self, costly: bool) -> None:
        """The life of a lane. Cheap calls share a worker; a costly one has its own, and its memory goes with it."""
        if costly:
            with suppress(PermissionError):
                # A schema is compiled in this process, beside passes.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        with ExitStack() as stack:
            lane = _Lane(self.forks, self._forking, costly)
            stack.callback(lane.drop_worker)
            while (job := self._next(costly)) is not None:
                if not self._prepare(job, lane) or costly:
                    lane.drop_worker()

    def _next(self, costly: bool) -> Job | None:
        with self._changed:
            job: Job | None = None
            while not self._is_over and (job := self._desk.take(costly)) is None:
                self._changed.wait()
            return None if self._is_over else job

    def _prepare(self, job: Job, lane: _Lane) -> bool:
        """Prepares one call and tells whoever waits. False when the worker is of no more use."""
        usable = self._try(job, lane)
        with self._changed:
            self._workers.pop(job, None)
            self._desk.done(job)
            self._changed.notify_all()
            # A cancel ended the worker, perhaps just when it had answered.
            return usable and not job.is_cancelled

    def _try(self, job: Job, lane: _Lane) -> bool:
        try:
            self._finish(job, [self._answer(job, ask, lane) for ask in job.asks])
        except _Refused as refused:
            self._fail(job, refused.error)
        except ForksLost:
            # The call waits for the next engine.
            raise
        except Exception as found:
            error = unexpected(found, "preparing the request")
            if error is not found:
                log.error("preparing a request: %s", places(found, with_text=False))
            self._fail(job, error)
            return False
        return True

    def _answer(self, job: Job, ask: Ask, lane: _Lane) -> Encoded:
        """A worker's answer, now or before. Raises _Refused when that is no, NvstreamError when it died over it."""
        with self._changed:
            answer = self._remembered.find(job.uid, ask)
        if answer is None:
            answer = self._ask(job, ask, lane)
            if ask.cost > CHEAP and (is_refusal(answer) or answer.HasField("encoded")):
                with self._changed:
                    self._remembered.keep(job.uid, ask, answer)
        if answer.HasField("failure"):
            failure = answer.failure
            raise _Refused(from_wire(failure.status, failure.message, failure.hint, failure.field))
        return answer.encoded

    def _ask(self, job: Job, ask: Ask, lane: _Lane) -> FromEngine:
        """A worker's answer. Raises NvstreamError when it died over the question."""
        try:
            return self._use(job, lane).ask(ask.packed)
        except NvstreamError as error:
            if ask.cost <= CHEAP and not isinstance(error, NoWorker):
                # Too little to kill a worker: the kernel did, for want of memory that others had.
                with self._changed:
                    # No cancel must reach for it any more.
                    self._workers.pop(job, None)
                lane.drop_worker()
                return self._use(job, lane).ask(ask.packed)
            if not job.is_cancelled and not isinstance(error, NoWorker):
                # It would kill the next worker too.
                with self._changed:
                    self._remembered.keep(job.uid, ask, FromEngine(failure=failure_of(error)))
            raise

    def _use(self, job: Job, lane: _Lane) -> Worker:
        """The lane's worker, which a cancel of the job ends from now on."""
        worker = lane.worker()
        with self._changed:
            if job.is_cancelled:
                raise _Refused(RequestCancelled("nobody waits for it"))
            self._workers[job] = worker
        return worker

    def _finish(self, job: Job, answers: list[Encoded]) -> None:
        """Hands out what a call became. What comes after a cancel is told to nobody."""
        if isinstance(job.call, Run):
            ids = next((list(answer.response.token_ids) for ask, answer in zip(job.asks, answers, strict=True)
                        if ask.is_text), None)
            schema = next((answer.schema for answer in answers if answer.schema), None)
            request = self.prompts.request(job.call, ids, schema)
            with self._changed:
                # Before a cancel that comes now is told: whoever hears it must know of the request.
                if self._open.get(job.id) is job:
                    self.results.ready(request)
                    del self._open[job.id]
        elif self._open.get(job.id) is job:
            # It stays open until that is said: what fails on the way is a failure that somebody waits for.
            self.results.encoded(job.id, answers[0].response)
            self._close(job)

    def _fail(self, job: Job, error: NvstreamError) -> None:
        if self._close(job):
            self.results.failed(job.id, error)

    def _close(self, job: Job) -> bool:
        """Closes the job. True when somebody still waited for it."""
        with self._changed:
            return self._open.pop(job.id, None) is job


class _Refused(Exception):
    """A worker's own no: it is as good as before."""

    def __init__(self, error: NvstreamError) -> None:
        super().__init__(str(error))
        self.error = error


class _Lane:
    """The worker that one thread uses, forked when it is needed."""

    def __init__(self, forks: Forks, forking: threading.Lock, costly: bool) -> None:
        self._forks = forks
        self._costly = costly
        self._forking = forking
        self._worker: Worker | None = None

    def worker(self) -> Worker:
        """The worker. Raises NvstreamError when none can be had."""
        if self._worker is None:
            with self._forking:
                self._worker = self._forks.worker(self._costly)
        return self._worker

    def drop_worker(self) -> None:
        """Ends the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
