"""How does one model stay in service, whatever happens to its engine?

The daemon keeps every request and the tokens already delivered. When an engine dies another is started, each request
is replayed behind its last token, and the clients' streams go on. Engines that die one after the other are replaced
after growing pauses, in which nobody waits: calls are refused, saying when to come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nvstreamd import message_ids
from nvstreamd.errors import DriveMissing, EngineLost, EnginePaused, ModelNotReady, NvstreamError, unexpected
from nvstreamd.supervisor.calls import Calls
from nvstreamd.supervisor.commands import Cancel, EncodeOrder, RunOrder
from nvstreamd.supervisor.deployment import Deployment, LoadOrder
from nvstreamd.supervisor.entry import Entry
from nvstreamd.supervisor.events import Phase
from nvstreamd.supervisor.known import State
from nvstreamd.supervisor.process import END_SECONDS
from nvstreamd.supervisor.recovery import Recovery
from nvstreamd.supervisor.reports import NAMES, Encoded, Loaded, Report, Stats, Tokens
from nvstreamd.supervisor.stream import Stream
from nvstreamd.supervisor.suspicion import MOST_CHUNK
from nvstreamd.supervisor.watch import Stall
from nvstreamd.text import places

log = logging.getLogger(__name__)

# The status of what nobody but who wrote the engine can mend.
FAULT = "INTERNAL"


class ServedModel:
    """One model and its engine. `state_changed` is called with every change of `state`."""

    def __init__(self, order: LoadOrder, state_changed: Callable[[ServedModel], None]) -> None:
        self.order = order
        self.entry = Entry(order)
        self.calls = Calls(order.name, order.settings.prefill_chunk or MOST_CHUNK, self._tell_left)
        self._state_changed = state_changed
        self._deployment = Deployment(order)
        self._life: asyncio.Task[None] | None = None
        self._recovery = Recovery(order.name, self._deployment, order.restarts, self._pausing)
        self.stall: Stall | None = None
        self._lacked_only_drive = False
        self._is_settled = asyncio.Event()
        self._one_return = asyncio.Lock()
        self._reaching: asyncio.Task[None] | None = None

    @property
    def lacks_drive(self) -> bool:
        """True while it is served worse than it could be, or not at all, because a drive was not there."""
        return self._deployment.lacks_drive or self._lacked_only_drive

    @property
    def state(self) -> State:
        """How the model is."""
        return self.entry.state

    @property
    def restarts(self) -> int:
        """How often its engine was replaced because it died."""
        return self._recovery.replaced

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._deployment.pid

    async def load(self) -> None:
        """Starts the engine and returns when the model can answer. Raises NvstreamError.

        A caller that gives up waiting does not stop it: loading goes on until `unload`.
        """
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be there to ask for the error; it is in `error` as well.
        loaded.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._become(State.LOADING)
        self._life = asyncio.create_task(self._live(loaded))
        await asyncio.shield(loaded)

    async def return_to_drives(self) -> None:
        """Goes on from drives that it lacked, if they are there now: streams do, behind their last tokens.

        Whoever calls this waits until the model is served, or has failed; one that has does not load itself again.
        """
        async with self._one_return:
            await self._is_settled.wait()
            if self.state == State.FAILED and self._life is not None:
                # What it held is given back before another load wants it.
                await asyncio.wait([self._life])
            on = self._deployment
            if self.state == State.SERVING and on.lacks_drive and not on.has_better:
                await self._reach()
            if self.state == State.SERVING and on.has_better:
                log.info("model %s: the drives that it lacked are there", self.order.name)
                on.kill("the drives that it lacked are there")

    async def unload(self, seconds: float = END_SECONDS) -> None:
        """Ends the engine, killing it after some seconds; streams that are still open fail."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        await self._reach_no_more()
        self.calls.fail_all(self._unloaded())
        await self._deployment.end(seconds)
        self._become(State.UNLOADED)

    def tick(self, now: float) -> None:
        """Looks whether the engine is frozen, as of `now` (time.monotonic); one that is gets replaced."""
        self.calls.give_up_suspects()
        self._hand_over()
        if self.state in (State.FAILED, State.UNLOADED):
            self.stall = None
            return
        stall = self._deployment.tick(now, self.entry.longest_pass)
        was_noticed, self.stall = self.stall is not None, stall if stall.is_noticed else None
        if stall.is_frozen:
            log.error("model %s: %s for %.0f s: its engine is replaced", self.order.name, stall.what, stall.seconds)
            self._deployment.kill(f"there was {stall.what} for {stall.seconds:.0f} s")
        elif was_noticed != (self.stall is not None):
            log.warning("model %s: %s", self.order.name,
                        f"{stall.what} for {stall.seconds:.0f} s" if self.stall else "its engine goes on")
            self._state_changed(self)

    @property
    def pass_seconds(self) -> float:
        """For how long the pass has been running that runs; 0 between passes."""
        return self._deployment.pass_seconds

    async def _live(self, loaded: asyncio.Future[None]) -> None:
        """From the first engine to the end of the model, by its unloading or by an error."""
        try:
            self._serve(await self._deployment.begin())
            loaded.set_result(None)
            await self._watch()
        except Exception as found:
            # Whatever it is, no stream may wait for ever and the model may not be called SERVING.
            error = unexpected(found, f"looking after model {self.order.name}")
            if error is not found:
                log.error("model %s: %s", self.order.name, places(found))
            await self._give_up(error)
            if not loaded.done():
                loaded.set_exception(error)
        finally:
            if not loaded.done():
                loaded.set_exception(self._unloaded())

    def _unloaded(self) -> ModelNotReady:
        return ModelNotReady(f"model {self.order.name} was unloaded", "load it again")

    def submit(self, order: RunOrder, charge: Callable[[int], None]) -> Stream:
        """Gives a request to the engine, or keeps it for the next one. Raises EngineLost between engines that died."""
        self._recovery.check_no_pause()
        stream = self.calls.open(order, charge)
        if self.state == State.LOADING:
            stream.progress(Phase.LOADING)
        elif self.state != State.SERVING:
            stream.progress(Phase.RECOVERING)
        self._hand_over()
        return stream

    def cancel(self, number: int) -> None:
        """Frees what a call takes before the next pass; nothing happens when it has ended."""
        if self.calls.close(number):
            self._tell_left(number)
            self._hand_over()

    async def encode(self, order: EncodeOrder) -> Encoded:
        """Token ids of a text or a conversation, once there is an engine to ask. Raises NvstreamError."""
        self._recovery.check_no_pause()
        encoding = self.calls.open_encoding(order)
        self._hand_over()
        try:
            return await encoding.answer
        finally:
            self.cancel(encoding.number)
            # Its failure refers to this frame, and so would keep the text until garbage is collected.
            del encoding

    def _tell_left(self, number: int) -> None:
        self._deployment.send(Cancel(number))

    def _hand_over(self) -> None:
        """Gives the engine the calls that it may have now."""
        if self.state == State.SERVING and self.calls.anything_to_hand_over:
            for command in self.calls.to_hand_over():
                self._deployment.send(command)

    def _become(self, state: State) -> None:
        self.entry.state = state
        if state in (State.LOADING, State.RECOVERING):
            self._is_settled.clear()
        else:
            self._is_settled.set()
        log.info("model %s: MODEL_STATE_%s", self.order.name, state.name, extra=message_ids.MODEL_STATE)
        self._state_changed(self)

    def _serve(self, loaded: Loaded) -> None:
        """Gives the engine everything that waits for one."""
        self.entry.loaded(loaded, [*self._given_up(), *self.order.users.notes()])
        for note in self.entry.placement.notes:
            log.info("model %s: %s", self.order.name, note)
        self._become(State.SERVING)
        self._hand_over()

    def _given_up(self) -> list[str]:
        """What is not used, and why, in words."""
        return self._deployment.notes

    async def _watch(self) -> None:
        """Takes the engine's reports for as long as the model can go on. Raises NvstreamError."""
        while True:
            try:
                await self._hear()
            except NvstreamError as error:
                self._serve(await self._after(error))

    async def _hear(self) -> None:
        """Takes a report. Raises NvstreamError: EngineLost when the engine has a fault, or what it says makes no sense.

        What has a remedy, a file or a drive, is said with a status of its own: another engine would not help.
        """
        report = await self._deployment.receive()
        try:
            self._take(report)
        except Exception as found:
            error = unexpected(found, f"taking {NAMES[type(report)]} of the engine")
            if error is not found:
                log.error("model %s: %s", self.order.name, places(found))
            if error.status != FAULT:
                raise
            raise await self._deployment.condemned(error) from found

    async def _after(self, error: NvstreamError) -> Loaded:
        """The next engine when one has ended, or cannot go on: its drive failed, say. Raises NvstreamError."""
        self.calls.engine_lost(by_itself=isinstance(error, EngineLost) and not self._deployment.ended_for_a_reason)
        if self._deployment.has_better:
            # It was ended for that.
            self._announce_recovery()
            return await self._deployment.move()
        if isinstance(error, EngineLost):
            log.warning("model %s: %s", self.order.name, error, extra=message_ids.ENGINE_LOST)
        elif not self._deployment.has_other:
            raise error
        self._announce_recovery()
        return await self._recovery.another(error)

    def _announce_recovery(self) -> None:
        self._become(State.RECOVERING)
        self.calls.recovering()

    def _pausing(self, error: EnginePaused) -> None:
        self.entry.error = error.message
        self.calls.fail_all(error)
        self._state_changed(self)

    async def _give_up(self, error: NvstreamError) -> None:
        log.error("model %s: %s", self.order.name, error)
        self.entry.error = str(error)
        self._lacked_only_drive = not self._deployment.given_up and isinstance(error, DriveMissing)
        self.entry.note(self._given_up())
        self._become(State.FAILED)
        self.calls.fail_all(error)
        await self._reach_no_more()
        await self._deployment.end()

    async def _reach(self) -> None:
        before = self._given_up()
        self._reaching = asyncio.create_task(self._deployment.reach())
        await asyncio.wait([self._reaching])
        # Where it stays on the route that it has, the reason may be another now.
        self.entry.note(self._given_up(), instead=before)

    async def _reach_no_more(self) -> None:
        if self._reaching is not None:
            self._reaching.cancel()
            await asyncio.wait([self._reaching])

    def _take(self, report: Report) -> None:
        if isinstance(report, Stats):
            self.entry.measured(report)
            return
        if isinstance(report, Tokens):
            self._recovery.progressed()
        self.calls.take(report)
        self._hand_over()
