"""How does one model stay in service, whatever happens to its engine?

The daemon keeps every request and the tokens already delivered. When an engine dies another is started, each request
is replayed behind its last token, and the clients' streams go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from nvstream.v1 import inference_pb2 as public
from nvstream.v1 import models_pb2 as models
from nvstreamd.errors import EngineLost, ModelNotReady, NvstreamError, from_wire
from nvstreamd.supervisor.jobs import checked, paths_of
from nvstreamd.supervisor.process import EngineProcess, named
from nvstreamd.supervisor.stream import Stream
from nvstreamd.weights.files import OpenFile, open_all
from nvstreamd.wire.engine_pb2 import Cancel, Encode, FromEngine, Load, Run, Stats, ToEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A model to load: name, path and the limits of its engine."""

    name: str
    path: Path
    command: Load
    user: str | None
    restarts: int


class ServedModel:
    """One model and its engine. `state_changed` is called with every change of `state`."""

    def __init__(self, order: LoadOrder, state_changed: Callable[[ServedModel], None]) -> None:
        self.order = order
        self.state: models.ModelState.ValueType = models.MODEL_STATE_UNLOADED
        self.facts = models.ModelFacts()
        self.placement = models.Placement()
        self.stats = Stats()
        self.restarts = 0
        self.error = ""
        self.streams: dict[int, Stream] = {}
        self._state_changed = state_changed
        self._encodings: dict[int, asyncio.Future[list[int]]] = {}
        self._engine = EngineProcess(order.user)
        self._files: list[OpenFile] = []
        self._stack = ExitStack()
        self._watcher: asyncio.Task[None] | None = None
        self._next_id = 1
        self._lost_in_a_row = 0

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._engine.pid

    async def load(self) -> None:
        """Starts the engine and waits until the model can answer. Raises NvstreamError."""
        self._become(models.MODEL_STATE_LOADING)
        try:
            self._files = open_all(paths_of(self.order.path), self._stack)
            await self._start_engine()
        except NvstreamError as error:
            self.error = str(error)
            self._become(models.MODEL_STATE_FAILED)
            await self.unload()
            raise
        self._become(models.MODEL_STATE_SERVING)
        self._watcher = asyncio.create_task(self._watch())

    async def unload(self) -> None:
        """Ends the engine; streams that are still open fail."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._fail_all(ModelNotReady(f"model {self.order.name} was unloaded", "load it again"))
        await self._engine.stop()
        self._stack.close()
        if self.state != models.MODEL_STATE_FAILED:
            self._become(models.MODEL_STATE_UNLOADED)

    def submit(self, run: Run) -> Stream:
        """Gives a request to the engine, or keeps it for the next one."""
        run.id = self._take_id()
        stream = Stream(run)
        self.streams[run.id] = stream
        if self.state == models.MODEL_STATE_SERVING:
            self._engine.send(ToEngine(run=run))
        else:
            stream.progress(public.PHASE_RECOVERING)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Frees the request's slot before the next pass; nothing happens when it has ended."""
        if self.streams.pop(stream.run.id, None) is not None:
            self._engine.send(ToEngine(cancel=Cancel(id=stream.run.id)))

    async def encode(self, call: Encode) -> list[int]:
        """Token ids of a text or a conversation. Raises NvstreamError."""
        if self.state != models.MODEL_STATE_SERVING:
            raise ModelNotReady(f"model {self.order.name} is being brought back", "try again in a moment")
        call.id = self._take_id()
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._encodings[call.id] = future
        self._engine.send(ToEngine(encode=call))
        try:
            return await future
        finally:
            self._encodings.pop(call.id, None)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _become(self, state: models.ModelState.ValueType) -> None:
        self.state = state
        log.info("model %s: %s", self.order.name, models.ModelState.Name(state))
        self._state_changed(self)

    async def _start_engine(self) -> None:
        for file in self._files:
            file.check_unchanged()
        self._engine = EngineProcess(self.order.user)
        command = Load()
        command.CopyFrom(self.order.command)
        command.files.extend(named(self._files))
        await self._engine.start(ToEngine(load=command), self._files)
        loaded = checked(await self._engine.receive()).loaded
        self.facts, self.placement = loaded.facts, loaded.placement
        for note in self.placement.notes:
            log.info("model %s: %s", self.order.name, note)

    async def _watch(self) -> None:
        """Takes the engine's reports until the model cannot go on."""
        while True:
            try:
                self._take(await self._engine.receive())
            except EngineLost as error:
                log.warning("model %s: %s", self.order.name, error)
                if not await self._recover(error):
                    return
            except NvstreamError as error:
                await self._give_up(error)
                return

    async def _recover(self, cause: EngineLost) -> bool:
        """Starts another engine and replays every request; False when that is given up."""
        self._become(models.MODEL_STATE_RECOVERING)
        for encoding in self._encodings.values():
            encoding.set_exception(ModelNotReady("the engine was lost", "try again in a moment"))
        for stream in self.streams.values():
            stream.progress(public.PHASE_RECOVERING, len(stream.run.sent_token_ids))
        while self._lost_in_a_row < self.order.restarts:
            self._lost_in_a_row += 1
            self.restarts += 1
            await self._engine.stop()
            try:
                await self._start_engine()
            except EngineLost as error:
                cause = error
                continue
            except NvstreamError as error:
                await self._give_up(error)
                return False
            self._become(models.MODEL_STATE_SERVING)
            for stream in self.streams.values():
                self._engine.send(ToEngine(run=stream.run))
            return True
        await self._give_up(EngineLost(f"{cause.message}, {self._lost_in_a_row} times in a row", cause.hint))
        return False

    async def _give_up(self, error: NvstreamError) -> None:
        log.error("model %s: %s", self.order.name, error)
        self.error = str(error)
        self._fail_all(error)
        self._become(models.MODEL_STATE_FAILED)
        await self._engine.stop()

    def _fail_all(self, error: NvstreamError) -> None:
        for stream in self.streams.values():
            stream.fail(error)
        self.streams.clear()
        for encoding in self._encodings.values():
            if not encoding.done():
                encoding.set_exception(error)

    def _take(self, report: FromEngine) -> None:
        kind = report.WhichOneof("report")
        if kind == "stats":
            self._take_stats(report.stats)
        elif kind == "encoded":
            encoding = self._encodings.get(report.encoded.id)
            if encoding is not None and not encoding.done():
                encoding.set_result(list(report.encoded.token_ids))
        elif kind == "failure":
            self._take_failure(report)
        elif kind is not None:
            stream = self.streams.get(getattr(report, kind).id)
            if stream is not None:
                self._take_event(stream, report, kind)

    def _take_stats(self, stats: Stats) -> None:
        if stats.tokens_generated > self.stats.tokens_generated:
            self._lost_in_a_row = 0
        self.stats = stats
        if stats.HasField("pass_seconds"):
            self.placement.measured_pass_seconds = stats.pass_seconds

    def _take_failure(self, report: FromEngine) -> None:
        failure = report.failure
        error = from_wire(failure.status, failure.message, failure.hint, failure.field)
        if failure.id == 0:
            raise error
        stream = self.streams.pop(failure.id, None)
        if stream is not None:
            stream.fail(error)
        encoding = self._encodings.get(failure.id)
        if encoding is not None and not encoding.done():
            encoding.set_exception(error)

    def _take_event(self, stream: Stream, report: FromEngine, kind: str) -> None:
        if kind == "queued" and not stream.accepted:
            stream.accepted = True
            stream.events.put_nowait(public.StreamEvent(accepted=self._accepted(report)))
        elif kind == "prefilled":
            stream.progress(public.PHASE_PREFILL, report.prefilled.done, report.prefilled.total)
        elif kind == "tokens":
            stream.deliver(report.tokens.delta)
        elif kind == "ended":
            self.streams.pop(report.ended.id)
            stream.events.put_nowait(public.StreamEvent(finished=report.ended.finished))

    def _accepted(self, report: FromEngine) -> public.Accepted:
        queued = report.queued
        accepted = public.Accepted(request_id=f"{self.order.name}-{queued.id}", queue_position=queued.position)
        if queued.HasField("eta_seconds"):
            accepted.eta.FromTimedelta(timedelta(seconds=queued.eta_seconds))
        return accepted
