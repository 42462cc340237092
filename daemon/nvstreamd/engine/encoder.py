"""How do texts and conversations become token ids? What a worker does for the engine: users size this work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine.chat_template import Renderer, find_template
from nvstreamd.engine.constraint import check
from nvstreamd.engine.tokenizer import ChatTemplateError, Tokenizer, TokenizerError
from nvstreamd.errors import InvalidRequest
from nvstreamd.wire.engine_pb2 import Encode, Encoded

# Clients take messages of 4 MiB by default, in every language (grpc.max_receive_message_length).
LARGEST_ANSWER = (4 << 20) - (16 << 10)


class Encoder:
    """Texts to ids, by one model's tokenizer and chat template."""

    def __init__(self, metadata: Mapping[str, object], tokenizer: Tokenizer) -> None:
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.renderer = Renderer()

    def open(self, stack: ExitStack) -> None:
        """Lets `stack` end the template process."""
        stack.callback(self.renderer.close)

    def encode(self, call: Encode) -> Encoded:
        """The ids of a text or a conversation. Raises InvalidRequest."""
        ids = self.chat(call.chat) if call.WhichOneof("input") == "chat" else self.text(call.text, call.add_special)
        encoded = Encoded(id=call.id, response=public.TokenizeResponse(token_ids=ids))
        if encoded.ByteSize() > LARGEST_ANSWER:
            raise InvalidRequest(f"the text has {len(ids)} tokens: their ids are more than {LARGEST_ANSWER} bytes",
                                 "send it in parts", field="text")
        return encoded

    def check_schema(self, schema: str) -> Encoded:
        """What is to be compiled of a JSON schema. Raises InvalidRequest when it cannot be within limits."""
        began = time.monotonic()
        return Encoded(schema=check(schema), compile_seconds=time.monotonic() - began)

    def text(self, text: str, add_special: bool) -> list[int]:
        """The ids of plain text; what spells a control token in it is one: a raw prompt is the caller's own."""
        with _translated("text"):
            return self.tokenizer.encode(text, add_special=add_special, parse_special=True)

    def chat(self, chat: public.ChatInput) -> list[int]:
        """The ids of a conversation by the model's template; contents cannot spell control tokens."""
        if not chat.messages:
            raise InvalidRequest("there are no messages", "send at least one", field="messages")
        with _translated("messages"):
            messages = [{"role": message.role, "content": message.content} for message in chat.messages]
            prompt = self.renderer.render(find_template(self.metadata), messages)
            ids = self.tokenizer.encode_parts(
                [(segment.text, segment.special) for segment in prompt.segments], True, prompt.structure
            )
        # Most templates write the begin token themselves.
        twice = len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_id
        return ids[1:] if twice else ids


@contextmanager
def _translated(field: str) -> Iterator[None]:
    try:
        yield
    except ChatTemplateError as error:
        raise InvalidRequest(str(error), error.hint, field=field) from error
    except TokenizerError as error:
        raise InvalidRequest(str(error), error.hint, field=field) from error
    except ValueError as error:
        raise InvalidRequest(str(error), "send Unicode text", field=field) from error
