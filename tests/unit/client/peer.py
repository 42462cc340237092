"""What does the other end of the socket say? A server that plays scripts, over the generated servicers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2 as rpc_status_pb2

from nvstream.v1 import inference_pb2_grpc, models_pb2_grpc, status_pb2_grpc

# Only a hang meets it; nothing is timed by it.
PATIENCE = 20.0


@dataclass(frozen=True)
class Failure:
    """Ends a call with a status, and google.rpc details."""

    code: grpc.StatusCode
    message: str
    details: tuple[Message, ...] = ()
    # What the details claim the message is; another than `message` contradicts the status.
    claimed: str | None = None

    async def end(self, context: Any) -> None:
        """Aborts the call."""
        status = rpc_status_pb2.Status(code=self.code.value[0], message=self.claimed or self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),) if self.details else ()
        await context.abort(self.code, self.message, trailers)


@dataclass(frozen=True)
class Forever:
    """Sends a message again and again, until the client goes away."""

    message: Message


@dataclass
class Gate:
    """Holds a call until a test opens it; one that is never opened holds it until it is cancelled."""

    _event: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Waits on the server's loop."""
        await self._event.wait()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens it, from any thread."""
        loop.call_soon_threadsafe(self._event.set)


class _Servicer:
    """Every method of every service plays the script of its name."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer


def _stream(name: str) -> Any:
    async def play(self: _Servicer, request: Message, context: Any) -> AsyncIterator[Message]:
        async with aclosing(self.peer.play(name, request, context)) as messages:
            async for message in messages:
                yield message

    return play


def _unary(name: str) -> Any:
    async def play(self: _Servicer, request: Message, context: Any) -> Message:
        answers = [message async for message in self.peer.play(name, request, context)]
        return answers[0]

    return play


class _Inference(_Servicer, inference_pb2_grpc.InferenceServicer):
    Generate, Chat, Tokenize = _stream("Generate"), _stream("Chat"), _unary("Tokenize")


class _Models(_Servicer, models_pb2_grpc.ModelsServicer):
    List, Get, Import = _unary("List"), _unary("Get"), _stream("Import")
    Load, Unload = _unary("Load"), _unary("Unload")


class _Status(_Servicer, status_pb2_grpc.StatusServicer):
    GetStatus = _unary("GetStatus")


class Peer:
    """A server on a Unix socket, on a loop and a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: queue.Queue[Any] = queue.Queue()
        self.cancelled = threading.Event()
        self._scripts: dict[str, tuple[Any, ...]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._run(self._start())

    def script(self, method: str, *steps: Any) -> None:
        """What the next calls of `method` play: messages, gates, an endless message, a failure."""
        self._scripts[method] = steps

    def request(self) -> Any:
        """The next request that arrived; waits for it."""
        return self.requests.get(timeout=PATIENCE)

    def open(self, gate: Gate) -> None:
        """Lets a call that waits at `gate` go on."""
        gate.open(self._loop)

    def saw_cancellation(self) -> bool:
        """Whether a client's cancellation reached a call; waits for it."""
        return self.cancelled.wait(PATIENCE)

    def close(self) -> None:
        """Stops the server and its thread."""
        self._run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def play(self, name: str, request: Message, context: Any) -> AsyncGenerator[Message, None]:
        """One call."""
        self.requests.put(request)
        try:
            for step in self._scripts[name]:
                if isinstance(step, Failure):
                    await step.end(context)
                elif isinstance(step, Gate):
                    await step.wait()
                elif isinstance(step, Forever):
                    while True:
                        yield step.message
                else:
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            # The second when the client left while a message was being sent.
            self.cancelled.set()
            raise

    async def _start(self) -> Any:
        server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        inference_pb2_grpc.add_InferenceServicer_to_server(_Inference(self), server)
        models_pb2_grpc.add_ModelsServicer_to_server(_Models(self), server)
        status_pb2_grpc.add_StatusServicer_to_server(_Status(self), server)
        server.add_insecure_port(f"unix:{self.path}")
        await server.start()
        return server

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)
