"""How do texts and conversations become token ids? What a worker does for the engine: users size this work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from nvstreamd.engine.chat_template import Message, Renderer, find_template
from nvstreamd.engine.constraint import check
from nvstreamd.engine.tokenizer import ChatTemplateError, Tokenizer, TokenizerError
from nvstreamd.errors import InvalidRequest


class Encoder:
    """Texts to ids, by one model's tokenizer and chat template."""

    def __init__(self, metadata: Mapping[str, object], tokenizer: Tokenizer) -> None:
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.renderer = Renderer()

    def open(self, stack: ExitStack) -> None:
        """Lets `stack` end the template process."""
        stack.callback(self.renderer.close)

    def check_schema(self, schema: str) -> str:
        """The form of a JSON schema that is to be compiled. Raises InvalidRequest when it cannot be within limits."""
        return check(schema)

    def text(self, text: str, add_special: bool) -> list[int]:
        """The ids of plain text; what spells a control token in it is one: a raw prompt is the caller's own."""
        with _translated("text"):
            return self.tokenizer.encode(text, add_special=add_special, parse_special=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation by the model's template; contents cannot spell control tokens."""
        if not messages:
            raise InvalidRequest("there are no messages", "send at least one", field="messages")
        with _translated("messages"):
            prompt = self.renderer.render(find_template(self.metadata), messages)
            ids = self.tokenizer.encode_parts(
                [(passage.text, passage.special) for passage in prompt.passages], True, prompt.structure
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
