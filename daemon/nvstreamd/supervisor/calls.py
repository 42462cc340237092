"""Which calls does a model answer at the moment, when does its engine get them, and to whom does a report go?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError, ProtocolError, from_wire
from nvstreamd.supervisor.reports import SERVING
from nvstreamd.supervisor.stream import Encoding, Stream
from nvstreamd.supervisor.suspicion import PATIENCE_SECONDS, Poison, Record, poisoned
from nvstreamd.wire.engine_pb2 import Encode, Failure, FromEngine, Run, ToEngine


class Calls:
    """The open calls of the model `name`. They outlive engines: `to_hand_over` gives them to the next one.

    `chunk` is how many tokens of prompts a pass takes; `leave` is told the number of a stream that nobody reads.
    """

    def __init__(self, name: str, chunk: int, leave: Callable[[int], None]) -> None:
        self.name = name
        self._chunk = chunk
        self.streams: dict[int, Stream] = {}
        self._encodings: dict[int, Encoding] = {}
        self._records: dict[int, Record] = {}
        self._at_engine: set[int] = set()
        self._poison = Poison()
        self._leave = leave
        self._next_id = 1

    def open(self, run: Run, charge: Callable[[int], None]) -> Stream:
        """A stream for a request, which gets its number; `charge` counts its tokens. Raises PoisonedRequest."""
        record = self._record(run)
        run.id = self._take_id()
        self._records[run.id] = record
        self.streams[run.id] = stream = Stream(run, charge)
        return stream

    def close(self, number: int) -> bool:
        """Forgets a call; whether an engine has to be told that nobody waits for it."""
        self.streams.pop(number, None)
        self._encodings.pop(number, None)
        self._records.pop(number, None)
        was_there = number in self._at_engine
        self._at_engine.discard(number)
        return was_there

    def open_encoding(self, call: Encode) -> Encoding:
        """One for a text, which gets its number. Raises PoisonedRequest."""
        record = self._record(call)
        call.id = self._take_id()
        self._records[call.id] = record
        self._encodings[call.id] = encoding = Encoding(call, asyncio.get_running_loop().create_future())
        return encoding

    def to_hand_over(self) -> Iterator[ToEngine]:
        """What the engine has to be told now. A suspect comes when the engine has nothing else, and then is alone."""
        if self._alone() is not None:
            return
        suspects = []
        for number in self._waiting():
            if self._records[number].is_suspect:
                suspects.append(number)
            else:
                yield self._hand_over(number)
        if suspects and not self._at_engine:
            yield self._hand_over(suspects[0])

    def engine_lost(self, by_itself: bool) -> None:
        """Notes that an engine died: of `itself`, or because somebody wanted that."""
        alone = self._alone()
        if by_itself:
            for number in self._at_engine:
                self._records[number].died()
            if alone is not None:
                self._poison.remember(self._records[alone], proven=True)
                self._fail(alone, poisoned("the last time on nothing else"))
        self._at_engine.clear()
        now = monotonic()
        for record in self._records.values():
            record.since = now

    def give_up_suspects(self) -> None:
        """Fails suspects that waited too long for an engine without other calls: those are not to wait for them."""
        now = monotonic()
        for number in list(self._waiting()):
            record = self._records[number]
            if record.is_suspect and record.since is not None and now - record.since > PATIENCE_SECONDS:
                self._poison.remember(record, proven=False)
                self._fail(number, poisoned(f"there was no quiet moment in {PATIENCE_SECONDS:g} s to try it alone"))

    @property
    def anything_to_hand_over(self) -> bool:
        """Whether a call waits for an engine to take it."""
        return len(self._records) > len(self._at_engine)

    def recovering(self) -> None:
        """Tells clients that another engine goes on for them."""
        for stream in list(self.streams.values()):
            stream.progress(public.PHASE_RECOVERING, len(stream.run.sent_token_ids))

    def fail_all(self, error: NvstreamError) -> None:
        """Ends all with an error."""
        for number in list(self._records):
            self._fail(number, error)

    def take(self, report: FromEngine) -> None:
        """Hands a report of one of them to whoever waits for it; of one that was left nobody waits.

        Raises the NvstreamError of a failure of all, or ProtocolError for a report that fits no call.
        """
        kind = report.WhichOneof("report")
        if kind not in SERVING:
            raise ProtocolError(f"{kind} while it serves")
        if kind == "encoded":
            if report.encoded.id in self.streams:
                raise ProtocolError(f"{kind} for a stream")
            encoding = self._encodings.get(report.encoded.id)
            if encoding is not None:
                encoding.succeed(report.encoded)
                self.close(report.encoded.id)
        elif kind == "failure":
            self._take_failure(report.failure)
        elif kind in ("queued", "prefilled", "tokens", "ended"):
            number = getattr(report, kind).id
            if number in self._encodings:
                raise ProtocolError(f"{kind} for a text")
            stream = self.streams.get(number)
            if stream is not None and not self._take_event(stream, self._records[number], report, kind):
                self.close(number)
                self._leave(number)

    def _record(self, call: Run | Encode) -> Record:
        """The record of a new call; one that is a suspect already waits from now on."""
        record = self._poison.record(call)
        record.since = monotonic() if record.is_suspect else None
        return record

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _waiting(self) -> Iterator[int]:
        return (number for number in self._records if number not in self._at_engine)

    def _alone(self) -> int | None:
        """The suspect that is tried at the moment."""
        return next((number for number in self._at_engine if self._records[number].is_suspect), None)

    def _hand_over(self, number: int) -> ToEngine:
        self._at_engine.add(number)
        stream = self.streams.get(number)
        return ToEngine(encode=self._encodings[number].call) if stream is None else ToEngine(run=stream.run)

    def _fail(self, number: int, error: NvstreamError) -> None:
        ended = self.streams.get(number) or self._encodings.get(number)
        self.close(number)
        if ended is not None:
            ended.fail(error)

    def _take_failure(self, failure: Failure) -> None:
        error = from_wire(failure.status, failure.message, failure.hint, failure.field)
        if failure.id == 0:
            raise error
        self._fail(failure.id, error)

    def _take_event(self, stream: Stream, record: Record, report: FromEngine, kind: str) -> bool:
        """False when the client does not read."""
        if kind == "queued":
            record.waits = report.queued.position > 0
            return stream.queued(f"{self.name}-{stream.run.id}", report.queued)
        record.waits = False
        if kind == "prefilled":
            record.prefilled_to(report.prefilled.done, self._chunk)
            return stream.progress(public.PHASE_PREFILL, report.prefilled.done, report.prefilled.total)
        if kind == "tokens":
            record.generated()
            return stream.deliver(report.tokens.delta)
        stream.finish(report.ended.finished)
        self.close(report.ended.id)
        return True
