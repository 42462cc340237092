"""How does an asyncio program call the daemon?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, Unpack

import grpc

from nvstream import address, convert, requests
from nvstream.errors import Cancelled, NvstreamError
from nvstream.events import Event, Finished
from nvstream.facts import DaemonStatus, ImportProgress, Model, ModelList
from nvstream.requests import Messages, Options
from nvstream.sizes import Size
from nvstream.transcript import ImportLog, Log, Transcript
from nvstream.translate import from_call
from nvstream.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)

P = TypeVar("P")
Q = TypeVar("Q")
R = TypeVar("R")
Q_contra = TypeVar("Q_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class _Responses(Protocol[R_co]):
    """A server-streaming call of grpc.aio."""

    def __aiter__(self) -> AsyncIterator[R_co]: ...
    def cancel(self) -> bool: ...


class _Unary(Protocol[Q_contra, R_co]):
    """A unary method of an asyncio stub."""

    def __call__(self, request: Q_contra, *, timeout: float | None = None) -> Awaitable[R_co]: ...


class _EventStream(Generic[P]):
    """Iterates a call's events; leaving its `async with` block, or dropping it, cancels what is left."""

    def __init__(self, call: _Responses[R], convert_one: Callable[[R], P | None], log: Log[P], socket: Path) -> None:
        self._messages: AsyncIterator[Any] = call.__aiter__()
        self._call: _Responses[Any] = call
        self._failure: NvstreamError | None = None
        self._convert: Callable[[Any], P | None] = convert_one
        self._log = log
        self._socket = socket
        self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        # grpc.aio's own references keep a forgotten call alive, and the daemon would go on for nobody.
        # A collector may run in any thread; a closed loop has closed its calls.
        with suppress(RuntimeError, AttributeError):
            self._loop.call_soon_threadsafe(self._call.cancel)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> P:
        while True:
            event = self._convert(await self._next_message())
            if event is not None:
                self._log.add(event)
                return event

    async def _next_message(self) -> Any:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            # grpc's iterator tells of a failure once and then just ends.
            if self._failure is not None:
                raise self._failure from None
            self._log.close()
            raise
        except grpc.aio.AioRpcError as error:
            self._failure = from_call(error, self._socket)
            raise self._failure from error
        except asyncio.CancelledError as error:
            # grpc.aio says this for a cancelled call and for a cancelled task; only the task's is the loop's.
            self.cancel()
            if _task_is_cancelled():
                raise
            self._failure = Cancelled("the call was cancelled")
            raise self._failure from error

    def cancel(self) -> None:
        """Tells the daemon to stop; may be called twice. Reading on raises Cancelled."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncStream(_EventStream[Event]):
    """The events of one generation, as they come: Accepted, Progress..., Delta..., Finished.

    Iterating raises the NvstreamError that ended the stream.
    """

    def __init__(self, call: _Responses[inference_pb2.StreamEvent], socket: Path) -> None:
        self._transcript = Transcript()
        super().__init__(call, convert.event, self._transcript, socket)

    @property
    def request_id(self) -> str | None:
        """The daemon's name for this request; None before Accepted."""
        return self._transcript.request_id

    @property
    def finished(self) -> Finished | None:
        """The last event; None while there is none."""
        return self._transcript.finished

    @property
    def received(self) -> str:
        """The text that came so far; of a stream that was cut short, all there is."""
        return self._transcript.text

    async def text(self) -> str:
        """The whole text, read to its end, with what was iterated before. Raises NvstreamError."""
        async for _ in self:
            pass
        return self._transcript.text


class AsyncImport(_EventStream[ImportProgress | Model]):
    """The progress of one import; its last value is the Model. Leaving early cancels; a later one resumes."""

    def __init__(self, call: _Responses[models_pb2.ImportResponse], socket: Path) -> None:
        super().__init__(call, convert.import_event, ImportLog(), socket)


class AsyncClient:
    """A connection to the daemon, for one event loop. Close it, or use it in an `async with` block.

    The same shape as `Client`: methods that return a stream are called, the others awaited. Every method
    takes `timeout` in seconds (None: none) and raises NvstreamError.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        self.socket = address.socket_path(socket, os.environ)
        self._channel = grpc.aio.insecure_channel(address.target(self.socket), address.channel_options())
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._models = models_pb2_grpc.ModelsStub(self._channel)
        self._status = status_pb2_grpc.StatusStub(self._channel)

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Continues `prompt`, a text or token ids. Options: see `Options`."""
        request = requests.generate(model, prompt, options)
        return AsyncStream(self._inference.Generate(request, timeout=requests.seconds(timeout)), self.socket)

    def chat(
        self, model: str, messages: Messages, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncStream:
        """Answers a conversation: Message values, or mappings with "role" and "content"."""
        request = requests.chat(model, messages, options)
        return AsyncStream(self._inference.Chat(request, timeout=requests.seconds(timeout)), self.socket)

    async def tokenize(
        self, model: str, given: str | Messages, *, add_special: bool = False, timeout: float | None = None
    ) -> list[int]:
        """The token ids of a text, or of a conversation through the model's chat template."""
        request = requests.tokenize(model, given, add_special)
        return list((await self._unary(self._inference.Tokenize, request, timeout)).token_ids)

    async def models(self, *, timeout: float | None = None) -> ModelList:
        """Every model the daemon knows; `notes` say of files why they are none."""
        answer = await self._unary(self._models.List, models_pb2.ListRequest(), timeout)
        return convert.model_list(answer)

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """One model, with its facts. Raises NotFound."""
        answer = await self._unary(self._models.Get, requests.get(name), timeout)
        return convert.model(answer.model)

    async def load(
        self,
        name: str,
        *,
        budget: Size | None = None,
        kv_budget: Size | None = None,
        backend: str | None = None,
        timeout: float | None = None,
    ) -> Model:
        """Brings a model into service under ceilings in bytes (or "60MiB"); returns when it can answer."""
        request = requests.load(name, budget, kv_budget, backend)
        return convert.model((await self._unary(self._models.Load, request, timeout)).model)

    async def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Takes a model out of service."""
        await self._unary(self._models.Unload, requests.unload(name), timeout)

    def import_model(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        directories: Iterable[str | os.PathLike[str]] = (),
        devices: Iterable[str] = (),
        timeout: float | None = None,
    ) -> AsyncImport:
        """Packs a GGUF on the daemon's machine: ImportProgress values, then the Model.

        `devices`: serial numbers of drives that its configuration names; instead of `directories`.
        """
        request = requests.import_model(source, name, directories, devices)
        return AsyncImport(self._models.Import(request, timeout=requests.seconds(timeout)), self.socket)

    async def status(self, *, timeout: float | None = None) -> DaemonStatus:
        """The daemon's status: what runs and how well."""
        answer = await self._unary(self._status.GetStatus, status_pb2.GetStatusRequest(), timeout)
        return convert.status(answer)

    async def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(self, method: _Unary[Q, R], request: Q, timeout: float | None) -> R:
        try:
            return await method(request, timeout=requests.seconds(timeout))
        except grpc.aio.AioRpcError as error:
            raise from_call(error, self.socket) from error


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
