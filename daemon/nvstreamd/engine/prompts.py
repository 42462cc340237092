"""How does a call become a request that can be scheduled? Templates, tokens, limits, options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine.chat_template import Renderer, find_template
from nvstreamd.engine.constraint import Constraint, Constraints
from nvstreamd.engine.output import Output
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.tokenizer import ChatTemplateError, Tokenizer, TokenizerError
from nvstreamd.errors import BadModelFile, InvalidRequest
from nvstreamd.wire.engine_pb2 import Encode, Encoded, Run

MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_LOGPROBS = 100
MOST_VOCABULARY = 1 << 20


class Prompts:
    """Tokenises for one model. `limit` is the number of tokens that a sequence may have."""

    def __init__(self, metadata: Mapping[str, object], tokenizer: Tokenizer, vocabulary: int, limit: int) -> None:
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.limit = limit
        self.renderer = Renderer()
        self.constraints = Constraints(tokenizer)

    def open(self, stack: ExitStack) -> None:
        """`stack` ends the template process."""
        stack.callback(self.renderer.close)

    def encode(self, call: Encode) -> Encoded:
        """The ids of a text or a conversation. Raises InvalidRequest."""
        if call.WhichOneof("input") == "chat":
            return Encoded(id=call.id, token_ids=self.chat(call.chat))
        return Encoded(id=call.id, token_ids=self.text(call.text, call.add_special))

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

    def request(self, run: Run) -> Request:
        """A call ready to be scheduled, brought to where its client has it. Raises InvalidRequest."""
        prompt = self._prompt(run)
        options = run.options
        request = Request(
            id=run.id,
            uid=run.uid,
            tokens=prompt,
            prompt_length=len(prompt),
            limit=self.limit,
            max_tokens=self._max_tokens(options, len(prompt)),
            sampling=sampling_of(options.sampling),
            output=Output(self.tokenizer.detokenizer(), stops_of(options)),
            constraint=self._constraint(options),
            ignore_eos=options.ignore_eos,
            logprobs=_logprobs(options),
        )
        _replay(request, run.sent_token_ids)
        return request

    def _prompt(self, run: Run) -> list[int]:
        kind = run.WhichOneof("prompt")
        if kind == "token_ids":
            ids = list(run.token_ids.ids)
        elif kind == "chat":
            ids = self.chat(run.chat)
        else:
            ids = self.text(run.text, add_special=True)
        if not ids:
            raise InvalidRequest("the prompt is empty", "send at least one token", field="prompt")
        if max(ids) >= self.vocabulary:
            raise InvalidRequest(f"token id {max(ids)} is not in the vocabulary",
                                 f"ids are below {self.vocabulary}", field="token_ids")
        if len(ids) >= self.limit:
            raise InvalidRequest(f"the prompt has {len(ids)} tokens, the context {self.limit}",
                                 "shorten the prompt, or load the model with a larger kv_budget", field="prompt")
        return ids

    def _max_tokens(self, options: public.Options, prompt: int) -> int:
        if not options.HasField("max_tokens"):
            return self.limit - prompt
        if options.max_tokens == 0:
            raise InvalidRequest("max_tokens is 0", "leave it out or ask for one at least", field="options.max_tokens")
        return options.max_tokens

    def _constraint(self, options: public.Options) -> Constraint | None:
        return self.constraints.json_schema(options.json_schema) if options.HasField("json_schema") else None


def _replay(request: Request, sent: Iterable[int]) -> None:
    """Takes the tokens that the client has already as generated, with nothing to show for them."""
    tokens = list(sent)
    for token in tokens:
        piece = request.output.push(token)
        request.stopped_by = piece.stop if piece is not None else None
    request.output.flush()
    request.tokens.extend(tokens)
    if request.constraint is not None and tokens:
        request.constraint.advance(tokens)


def stops_of(options: public.Options) -> list[str]:
    """The stop strings. Raises InvalidRequest."""
    stops = list(options.stop)
    if len(stops) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise InvalidRequest("too many, too long or empty stop strings",
                             f"at most {MOST_STOPS} of 1 to {LONGEST_STOP} characters", field="options.stop")
    return stops


def _logprobs(options: public.Options) -> int | None:
    if not options.HasField("logprobs"):
        return None
    if options.logprobs > MOST_LOGPROBS:
        raise InvalidRequest(f"logprobs is {options.logprobs}", f"at most {MOST_LOGPROBS}", field="options.logprobs")
    return options.logprobs


def sampling_of(message: public.Sampling) -> Sampling:
    """The fields that are set, the defaults for the others. Raises InvalidRequest."""
    given = {field.name: value for field, value in message.ListFields()}
    sampling = Sampling(**given)
    sampling.check()
    return sampling


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


def load_tokenizer(path: str, metadata: Mapping[str, object], vocabulary: int) -> Tokenizer:
    """The tokenizer of a model file. Raises BadModelFile naming field and remedy."""
    from nvstreamd.engine.tokenizer import load

    try:
        tokenizer = load(metadata)
    except TokenizerError as error:
        raise BadModelFile(f"{path}: {error}", error.hint, field=error.field) from error
    if tokenizer.vocab_size > vocabulary:
        raise BadModelFile(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {vocabulary}",
                           "convert the model again", field="tokenizer.ggml.tokens")
    return tokenizer
