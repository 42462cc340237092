"""Which calls does a model answer at the moment, when does its engine get them, and to whom does a report go?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic

from nvstreamd.errors import NvstreamError, ProtocolError
from nvstreamd.supervisor.commands import Encode, EncodeOrder, Order, Run, RunOrder
from nvstreamd.supervisor.events import Phase
from nvstreamd.supervisor.reports import (
    NAMES,
    Encoded,
    Ended,
    Failure,
    Prefilled,
    Queued,
    Report,
    Tokens,
)
from nvstreamd.supervisor.stream import Encoding, Stream
from nvstreamd.supervisor.suspicion import PATIENCE_SECONDS, CallRecord, Poison, poisoned


class Calls:
    """The open calls of the model `name`. They outlive engines: `to_hand_over` gives them to the next one.

    `chunk` is how many tokens of prompts a pass takes; `leave` is told the number of a stream that nobody reads.
    """

    def __init__(self, name: str, chunk: int, leave: Callable[[int], None]) -> None:
        self.name = name
        self._chunk = chunk
        self.streams: dict[int, Stream] = {}
        self._encodings: dict[int, Encoding] = {}
        self._records: dict[int, CallRecord] = {}
        self._at_engine: set[int] = set()
        self._poison = Poison()
        self._leave = leave
        self._next_number = 1

    def open(self, order: RunOrder, charge: Callable[[int], None]) -> Stream:
        """Makes the stream of a request and numbers it; `charge` counts the tokens. Raises PoisonedRequest."""
        record = self._record(order)
        stream = Stream(self._take_number(), order, charge)
        self._records[stream.number] = record
        self.streams[stream.number] = stream
        return stream

    def close(self, number: int) -> bool:
        """Forgets a call. Returns True when the engine has it and must be told that nobody waits for it."""
        self.streams.pop(number, None)
        self._encodings.pop(number, None)
        self._records.pop(number, None)
        was_there = number in self._at_engine
        self._at_engine.discard(number)
        return was_there

    def open_encoding(self, order: EncodeOrder) -> Encoding:
        """Makes the answer that a text to encode will get, and numbers it. Raises PoisonedRequest."""
        record = self._record(order)
        encoding = Encoding(self._take_number(), order, asyncio.get_running_loop().create_future())
        self._records[encoding.number] = record
        self._encodings[encoding.number] = encoding
        return encoding

    def to_hand_over(self) -> Iterator[Run | Encode]:
        """The commands that the engine gets now. That of a suspect comes alone, when the engine has nothing else."""
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
        """Notes that the engine died: `by_itself`, or because somebody ended it."""
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
        """Fails suspects that waited too long for an engine without other calls. Other calls never wait for them."""
        now = monotonic()
        for number in list(self._waiting()):
            record = self._records[number]
            if record.is_suspect and record.since is not None and now - record.since > PATIENCE_SECONDS:
                self._poison.remember(record, proven=False)
                self._fail(number, poisoned(f"there was no quiet moment in {PATIENCE_SECONDS:g} s to try it alone"))

    @property
    def anything_to_hand_over(self) -> bool:
        """True while a call waits for an engine to take it."""
        return len(self._records) > len(self._at_engine)

    def recovering(self) -> None:
        """Tells clients that another engine goes on for them."""
        for stream in list(self.streams.values()):
            stream.progress(Phase.RECOVERING, len(stream.sent))

    def fail_all(self, error: NvstreamError) -> None:
        """Ends all with an error."""
        for number in list(self._records):
            self._fail(number, error)

    def take(self, report: Report) -> None:
        """Hands a report of one of them to whoever waits for it; of one that was left nobody waits.

        Raises the NvstreamError of a failure of all, or ProtocolError for a report that fits no call.
        """
        match report:
            case Tokens() | Prefilled() | Queued() | Ended():
                if report.number in self._encodings:
                    raise ProtocolError(f"{NAMES[type(report)]} for a text")
                stream = self.streams.get(report.number)
                if stream is not None and not self._take_event(stream, self._records[report.number], report):
                    self.close(report.number)
                    self._leave(report.number)
            case Encoded():
                self._take_encoded(report)
            case Failure(number=0):
                raise report.error
            case Failure():
                self._fail(report.number, report.error)
            case _:
                raise ProtocolError(f"{NAMES[type(report)]} while it serves")

    def _record(self, order: Order) -> CallRecord:
        """The record of a new call; one that is a suspect already waits from now on."""
        record = self._poison.record(order)
        record.since = monotonic() if record.is_suspect else None
        return record

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number

    def _waiting(self) -> Iterator[int]:
        return (number for number in self._records if number not in self._at_engine)

    def _alone(self) -> int | None:
        """The suspect that is tried at the moment."""
        return next((number for number in self._at_engine if self._records[number].is_suspect), None)

    def _hand_over(self, number: int) -> Run | Encode:
        self._at_engine.add(number)
        return (self.streams.get(number) or self._encodings[number]).command

    def _fail(self, number: int, error: NvstreamError) -> None:
        ended = self.streams.get(number) or self._encodings.get(number)
        self.close(number)
        if ended is not None:
            ended.fail(error)

    def _take_encoded(self, encoded: Encoded) -> None:
        if encoded.number in self.streams:
            raise ProtocolError(f"{NAMES[Encoded]} for a stream")
        encoding = self._encodings.get(encoded.number)
        if encoding is not None:
            encoding.succeed(encoded)
            self.close(encoded.number)

    def _take_event(self, stream: Stream, record: CallRecord, report: Queued | Prefilled | Tokens | Ended) -> bool:
        """False when the client does not read."""
        record.waits = isinstance(report, Queued) and report.position > 0
        match report:
            case Tokens():
                record.generated()
                return stream.deliver(report.delta)
            case Queued():
                return stream.queued(f"{self.name}-{stream.number}", report)
            case Prefilled():
                record.prefilled_to(report.done, self._chunk)
                return stream.progress(Phase.PREFILL, report.done, report.total)
            case Ended():
                stream.finish(report.finished)
                self.close(report.number)
                return True
