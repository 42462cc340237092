"""What happens to bytes that are no message of ours? A clear refusal, where grpcio would answer INTERNAL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from nvstreamd.api.context import Context
from nvstreamd.api.rpc_errors import abort
from nvstreamd.errors import InvalidRequest

Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


def _parser(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """`parse`, giving back its error instead of raising it: grpcio has one answer to whatever a parser raises."""

    def parsed(raw: bytes) -> object:
        try:
            return parse(raw)
        except DecodeError as error:
            return InvalidRequest(f"the request cannot be parsed: {error}",
                                  "send the message that nvstream.v1 defines, its strings in UTF-8", field="request")

    return parsed


def _unary(behaviour: Callable[[Any, Context], Awaitable[object]]) -> Callable[[Any, Context], Awaitable[object]]:
    async def call(request: Any, context: Context) -> object:
        if isinstance(request, InvalidRequest):
            await abort(context, request)
        return await behaviour(request, context)

    return call


def _stream(behaviour: Callable[[Any, Context], AsyncIterator[Any]]) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(request, InvalidRequest):
            await abort(context, request)
        async for response in behaviour(request, context):
            yield response

    return call


class WellFormed(grpc.aio.ServerInterceptor):
    """Wraps the methods of nvstream.v1; other services answer for themselves."""

    async def intercept_service(self, continuation: Continuation,
                                handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/nvstream."):
            return handler
        parse = _parser(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_stream(handler.unary_stream), parse,
                                                        handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), parse, handler.response_serializer)
