"""How do Generate, Chat and Tokenize reach a model?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import cast

from nvstream.v1 import inference_pb2 as public
from nvstream.v1.inference_pb2_grpc import InferenceServicer
from nvstreamd.api.context import Context, when_over
from nvstreamd.api.convert import event_message, prompt_of, text_of
from nvstreamd.api.peer import of_call
from nvstreamd.errors import InvalidRequest
from nvstreamd.supervisor.admission import Admission
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.commands import EncodeOrder, Prompt, RunOrder
from nvstreamd.supervisor.events import Finished
from nvstreamd.supervisor.model import ServedModel

MOST_MESSAGES = 1 << 14
LONGEST_ROLE = 64
# What clients of gRPC take unless they are told otherwise is 4 MiB.
LARGEST_REPLY = (4 << 20) - (64 << 10)


class Inference(InferenceServicer):
    """nvstream.v1.Inference."""

    def __init__(self, catalog: Catalog, admission: Admission) -> None:
        self.catalog = catalog
        self.admission = admission

    async def Generate(self, request: public.GenerateRequest,
                       context: Context) -> AsyncIterator[public.StreamEvent]:
        """Streams the continuation of a prompt."""
        async for event in self._stream(request.model, prompt_of(request), request.options, context):
            yield event

    async def Chat(self, request: public.ChatRequest,
                   context: Context) -> AsyncIterator[public.StreamEvent]:
        """Streams the answer to a conversation."""
        check_messages(request.messages)
        prompt = Prompt("chat", public.ChatInput(messages=request.messages))
        async for event in self._stream(request.model, prompt, request.options, context):
            yield event

    async def Tokenize(self, request: public.TokenizeRequest,
                       context: Context) -> public.TokenizeResponse:
        """Token ids as Generate would see them."""
        peer = of_call(context.peer())
        check_messages(request.chat.messages)
        order = EncodeOrder(peer.uid, peer.share, text_of(request), request.add_special)
        encoded = await (await self._model(request.model)).encode(order)
        response = cast(public.TokenizeResponse, encoded.response)
        if (size := response.ByteSize()) > LARGEST_REPLY:
            raise InvalidRequest(f"the text has {len(response.token_ids)} tokens: {size} bytes, a reply has at most "
                                 f"{LARGEST_REPLY}", "send it in parts", field="text")
        return response

    async def _model(self, name: str) -> ServedModel:
        if not name:
            raise InvalidRequest("no model is named", "nvstream models list shows them", field="model")
        return await self.catalog.ready(name)

    async def _stream(self, name: str, prompt: Prompt, options: public.Options,
                      context: Context) -> AsyncIterator[public.StreamEvent]:
        """Events until the end. A client that leaves or runs out of time frees its slot before the next pass."""
        peer = of_call(context.peer())
        model = await self._model(name)
        ticket = self.admission.admit(name, peer.share, None if peer.owner is not None else peer.gid)
        when_over(context, ticket.release)
        stream = model.submit(RunOrder(peer.uid, prompt, options, ticket.terms), ticket.charge)
        when_over(context, lambda: model.cancel(stream.number))
        async for event in stream.events:
            yield event_message(event)
            if isinstance(event, Finished):
                return


def check_messages(messages: Sequence[public.ChatMessage]) -> None:
    """Raises InvalidRequest for what no template could take, before anybody works on it."""
    if len(messages) > MOST_MESSAGES:
        raise InvalidRequest(f"there are {len(messages)} messages", f"at most {MOST_MESSAGES}", field="messages")
    for number, message in enumerate(messages):
        if len(message.role) > LONGEST_ROLE:
            raise InvalidRequest(f"the role of message {number} has {len(message.role)} characters",
                                 f"at most {LONGEST_ROLE}", field=f"messages[{number}].role")
