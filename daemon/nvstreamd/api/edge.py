"""What does every call pass before its own code runs, and before its message is even read?

Identity, permission, whether the daemon takes calls, and the caller's share of open calls and of bytes. grpcio reads
and parses a message before it says whose it is: so every method is served as one that takes a stream of raw messages,
of which the first is read once the caller is known. What nobody reads stays in the client, by HTTP/2's flow control.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from nvstreamd.api.context import Context
from nvstreamd.api.guard import Guard
from nvstreamd.api.peer import Peer
from nvstreamd.api.rpc_errors import abort
from nvstreamd.errors import DeadlinePassed, InvalidRequest, NotServed, NvstreamError, unexpected
from nvstreamd.text import places

log = logging.getLogger(__name__)

# From the permission to send a message to its last byte.
RECEIVE_SECONDS = 30.0
# A prompt of a million tokens fits; what is larger is refused before it is parsed.
LARGEST_MESSAGE = 16 << 20

Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Parse = Callable[[bytes], Any]
# An asynchronous generator of responses, or a coroutine that writes them itself.
Behaviour = Callable[[Any, Context], Any]
# From grpcio's stream of requests to what a behaviour takes.
Enter = Callable[[Any, Context, str], Awaitable[object]]


class Edge(grpc.aio.ServerInterceptor):
    """Wraps every method of every service."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    async def intercept_service(self, continuation: Continuation,
                                handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The method's own handler behind ours; None stays None, which is UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        if handler is None:
            return None
        serialise, parse = handler.response_serializer, handler.request_deserializer
        if handler.request_streaming:
            # Reflection alone: its messages are read one by one.
            call = self._many(method, handler.stream_stream, self._enter_streaming)
            return grpc.stream_stream_rpc_method_handler(call, parse, serialise)

        async def enter(_: object, context: Context, method: str) -> object:
            return await self._enter(context, method, parse)

        if handler.response_streaming:
            call = self._many(method, handler.unary_stream, enter)
            return grpc.stream_stream_rpc_method_handler(call, None, serialise)
        return grpc.stream_unary_rpc_method_handler(self._one(method, handler.unary_unary, enter), None, serialise)

    def _one(self, method: str, behaviour: Behaviour, enter: Enter) -> Behaviour:
        """A method with one response."""

        async def call(requests: Any, context: Context) -> object:
            try:
                return await behaviour(await enter(requests, context, method), context)
            except Exception as error:
                failure = _failure(error, method)
            await abort(context, failure)

        return call

    def _many(self, method: str, behaviour: Behaviour, enter: Enter) -> Behaviour:
        """A method with any number of responses."""

        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for response in _responses(behaviour, await enter(requests, context, method), context):
                    yield response
                return
            except Exception as error:
                failure = _failure(error, method)
            await abort(context, failure)

        return call

    async def _enter_streaming(self, requests: AsyncIterator[Any], context: Context, method: str) -> object:
        """The messages of a call that may bring any number. Raises NvstreamError when there is no share left for it."""
        return self._paced(requests, self.guard.admit_streaming(context, method))

    async def _paced(self, requests: AsyncIterator[Any], peer: Peer) -> AsyncIterator[Any]:
        """The messages of a call, each of which costs as much as a call does."""
        async for request in requests:
            await self.guard.pace.take(peer.share)
            yield request

    async def _enter(self, context: Context, method: str, parse: Parse) -> object:
        """The call's message. Raises NvstreamError when there is no share left for it, or it is none."""
        peer = self.guard.admit(context, method)
        await self.guard.pace.take(peer.share)
        raw = await self._receive(context, peer)
        self.guard.charge(context, peer, len(raw))
        return parse(raw)

    async def _receive(self, context: Context, peer: Peer) -> bytes:
        """The first message of a call. A user sends few at a time: the others wait, with their bytes, in the client."""
        async with self.guard.receiving(peer):
            try:
                async with asyncio.timeout(RECEIVE_SECONDS):
                    raw = await context.read()
            except TimeoutError:
                raise DeadlinePassed(f"the request did not come within {RECEIVE_SECONDS:g} s",
                                     "send it faster, or less of it") from None
        if not isinstance(raw, bytes):
            raise InvalidRequest("the call ended without a request", "send one message", field="request")
        if len(raw) > LARGEST_MESSAGE:
            raise InvalidRequest(f"the request has {len(raw)} bytes, more than {LARGEST_MESSAGE}", "send less",
                                 field="request")
        return raw


def _failure(error: Exception, method: str) -> NvstreamError:
    """The error that a call ends by; an exception that is none of ours is in the log. grpcio's own are raised again.

    grpcio keeps what ends a call for a while: without its traceback that does not keep the request too.
    """
    if isinstance(error, grpc.aio.AbortError | grpc.RpcError):
        raise error
    ours = unexpected(_known(error, method), method)
    if ours.status == "INTERNAL" and ours is not error:
        log.error("%s: %s", method, places(error, with_text=False))
    ours.__traceback__ = ours.__context__ = ours.__cause__ = None
    return ours


def _known(error: Exception, method: str) -> Exception:
    """The error as ours, where protobuf and grpcio raised it for what a caller did; any other as it is."""
    if isinstance(error, DecodeError):
        return InvalidRequest(f"the request cannot be parsed: {error}",
                              "send the message that the service defines, its strings in UTF-8", field="request")
    if isinstance(error, NotImplementedError) and _is_generated(error):
        return NotServed(f"this daemon has no {method}", "server reflection names what it has")
    return error


def _is_generated(error: Exception) -> bool:
    """True when the service's generated base class raised it: it stands for a method that nobody wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("_pb2_grpc.py")


async def _responses(behaviour: Behaviour, request: object, context: Context) -> AsyncIterator[Any]:
    """The answers of a method, whichever of grpcio's two styles it is written in."""
    answer = behaviour(request, context)
    if inspect.isawaitable(answer):
        await answer
        return
    async for response in answer:
        yield response
