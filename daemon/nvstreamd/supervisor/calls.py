"""Which calls does a model answer at the moment, and to whom does a report of its engine go?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from nvstream.v1 import inference_pb2 as public
from nvstreamd.errors import NvstreamError, from_wire
from nvstreamd.supervisor.stream import Encoding, Stream
from nvstreamd.wire.engine_pb2 import Encode, Failure, FromEngine, Run, ToEngine


class Calls:
    """The open calls of the model `name`. They outlive engines: `again` gives them to the next one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams: dict[int, Stream] = {}
        self._encodings: dict[int, Encoding] = {}
        self._next_id = 1

    def open(self, run: Run) -> Stream:
        """A stream for a request, which gets its number."""
        run.id = self._take_id()
        self.streams[run.id] = stream = Stream(run)
        return stream

    def close(self, stream: Stream) -> bool:
        """Whether it was still open."""
        return self.streams.pop(stream.run.id, None) is not None

    def open_encoding(self, call: Encode) -> Encoding:
        """One for a text, which gets its number."""
        call.id = self._take_id()
        self._encodings[call.id] = encoding = Encoding(call, asyncio.get_running_loop().create_future())
        return encoding

    def close_encoding(self, encoding: Encoding) -> None:
        """Nobody waits for it any more."""
        self._encodings.pop(encoding.call.id, None)

    def again(self) -> Iterator[ToEngine]:
        """What an engine has to be told that knows of none."""
        for stream in self.streams.values():
            yield ToEngine(run=stream.run)
        for encoding in self._encodings.values():
            yield ToEngine(encode=encoding.call)

    def recovering(self) -> None:
        """Tells clients that another engine goes on for them."""
        for stream in self.streams.values():
            stream.progress(public.PHASE_RECOVERING, len(stream.run.sent_token_ids))

    def fail_all(self, error: NvstreamError) -> None:
        """Ends all with an error."""
        for stream in self.streams.values():
            stream.fail(error)
        self.streams.clear()
        for encoding in self._encodings.values():
            encoding.fail(error)

    def take(self, report: FromEngine) -> None:
        """Hands a report of one of them to whoever waits for it. Raises the NvstreamError of a failure of all."""
        kind = report.WhichOneof("report")
        if kind == "encoded":
            encoding = self._encodings.get(report.encoded.id)
            if encoding is not None:
                encoding.succeed(report.encoded.token_ids)
        elif kind == "failure":
            self._take_failure(report.failure)
        elif kind is not None:
            stream = self.streams.get(getattr(report, kind).id)
            if stream is not None:
                self._take_event(stream, report, kind)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _take_failure(self, failure: Failure) -> None:
        error = from_wire(failure.status, failure.message, failure.hint, failure.field)
        if failure.id == 0:
            raise error
        stream = self.streams.pop(failure.id, None)
        if stream is not None:
            stream.fail(error)
        encoding = self._encodings.get(failure.id)
        if encoding is not None:
            encoding.fail(error)

    def _take_event(self, stream: Stream, report: FromEngine, kind: str) -> None:
        if kind == "queued":
            stream.queued(f"{self.name}-{stream.run.id}", report.queued)
        elif kind == "prefilled":
            stream.progress(public.PHASE_PREFILL, report.prefilled.done, report.prefilled.total)
        elif kind == "tokens":
            stream.deliver(report.tokens.delta)
        elif kind == "ended":
            self.streams.pop(report.ended.id)
            stream.events.put_nowait(public.StreamEvent(finished=report.ended.finished))
