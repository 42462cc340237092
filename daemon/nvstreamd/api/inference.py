"""How do Generate, Chat and Tokenize reach a model?"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from nvstream.v1 import inference_pb2 as public
from nvstream.v1.inference_pb2_grpc import InferenceServicer
from nvstreamd.api.context import Context, when_over
from nvstreamd.api.guard import Guard
from nvstreamd.api.rpc_errors import abort
from nvstreamd.errors import InvalidRequest, NvstreamError, QuotaExceeded
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.model import ServedModel
from nvstreamd.wire.engine_pb2 import Encode, Run

SEED_BITS = 63


class Inference(InferenceServicer):
    """nvstream.v1.Inference."""

    def __init__(self, guard: Guard, catalog: Catalog) -> None:
        self.guard = guard
        self.catalog = catalog

    async def Generate(self, request: public.GenerateRequest,
                       context: Context) -> AsyncIterator[public.StreamEvent]:
        """Streams the continuation of a prompt."""
        run = Run(options=request.options)
        if request.WhichOneof("prompt") == "token_ids":
            run.token_ids.CopyFrom(request.token_ids)
        else:
            run.text = request.text
        async for event in self._stream("Generate", request.model, run, context):
            yield event

    async def Chat(self, request: public.ChatRequest,
                   context: Context) -> AsyncIterator[public.StreamEvent]:
        """Streams the answer to a conversation."""
        run = Run(options=request.options, chat=public.ChatInput(messages=request.messages))
        async for event in self._stream("Chat", request.model, run, context):
            yield event

    async def Tokenize(self, request: public.TokenizeRequest,
                       context: Context) -> public.TokenizeResponse:
        """Token ids as Generate would see them."""
        try:
            self.guard.admit(context, "nvstream.v1.Inference/Tokenize")
            call = Encode(add_special=request.add_special)
            if request.WhichOneof("input") == "chat":
                call.chat.CopyFrom(request.chat)
            else:
                call.text = request.text
            ids = await self._model(request.model).encode(call)
            return public.TokenizeResponse(token_ids=ids)
        except NvstreamError as error:
            await abort(context, error)

    def _model(self, name: str) -> ServedModel:
        if not name:
            raise InvalidRequest("no model is named", "nvstream models list shows them", field="model")
        return self.catalog.ready(name)

    async def _stream(self, method: str, name: str, run: Run,
                      context: Context) -> AsyncIterator[public.StreamEvent]:
        """Events until the end. A client that leaves or runs out of time frees its slot before the next pass."""
        try:
            peer = self.guard.admit(context, f"nvstream.v1.Inference/{method}")
            model = self._model(name)
            self._check_queue(model)
            run.uid = peer.uid
            # Chosen here, so that a replay in another engine draws the same tokens.
            if not run.options.sampling.HasField("seed"):
                run.options.sampling.seed = secrets.randbits(SEED_BITS)
            stream = model.submit(run)
            when_over(context, lambda: model.cancel(stream))
            while True:
                event = await stream.events.get()
                if isinstance(event, NvstreamError):
                    raise event
                yield event
                if event.WhichOneof("event") == "finished":
                    return
        except NvstreamError as error:
            await abort(context, error)

    def _check_queue(self, model: ServedModel) -> None:
        most = self.catalog.config.max_running + self.catalog.config.max_queued
        if len(model.calls.streams) >= most:
            raise QuotaExceeded(f"{len(model.calls.streams)} requests are running or queued for {model.order.name}",
                                "try again later", field="queue")
