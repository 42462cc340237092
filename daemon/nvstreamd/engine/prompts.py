"""How does a call become a request that can be scheduled? Its length, its token ids, limits, options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine.constraint import LONGEST_SCHEMA, Constraints
from nvstreamd.engine.output import Output
from nvstreamd.engine.preparation.desk import CHEAP, MESSAGE_COST, Ask
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.tokenizer import Tokenizer, TokenizerError
from nvstreamd.errors import BadModelFile, InvalidRequest
from nvstreamd.wire.engine_pb2 import Encode, Prepare, Run

MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_LOGPROBS = 100
# Bytes of a text whose ids are asked for; what is to be answered is held against the context.
LONGEST_TEXT = 1 << 23


class Prompts:
    """Calls to one model. `limit` is the number of tokens that a sequence may have."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, limit: int) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.limit = limit
        self.constraints = Constraints(tokenizer)
        self._longest_token = max(len(tokenizer.token_bytes(token, special=True))
                                  for token in range(tokenizer.vocab_size))

    def questions(self, call: Run | Encode) -> list[Ask]:
        """What is to be found out before a call can go on. Raises InvalidRequest for what lengths alone tell."""
        if isinstance(call, Encode):
            question = Prepare(encode=call)
            question.encode.id = 0
            return [Ask.of(question, _check_size(call, LONGEST_TEXT, self.limit))]
        asks: list[Ask] = []
        limit = self._limit_of(call)
        check_options(call.options)
        if call.WhichOneof("prompt") == "token_ids":
            self._check_ids(call.token_ids.ids, limit)
        else:
            encode = Encode(uid=call.uid, add_special=True)
            if call.WhichOneof("prompt") == "chat":
                encode.chat.CopyFrom(call.chat)
            else:
                encode.text = call.text
            asks.append(Ask.of(Prepare(encode=encode), _check_size(encode, limit * self._longest_token, limit)))
        if call.options.HasField("json_schema"):
            # Nobody can tell from its length what a schema costs.
            asks.append(Ask.of(Prepare(json_schema=call.options.json_schema), CHEAP + 1))
        return asks

    def request(self, run: Run, ids: list[int] | None, schema: str | None = None) -> Request:
        """A call ready to be scheduled, brought to where its client has it. Raises InvalidRequest.

        `ids` are those of its text, None when the call brought ids itself; `schema` is its own, checked.
        """
        limit = self._limit_of(run)
        prompt = list(run.token_ids.ids) if ids is None else ids
        self._check_ids(prompt, limit)
        options = run.options
        constraint = None if schema is None else self.constraints.compile(schema)
        request = Request(
            id=run.id,
            uid=run.uid,
            tokens=prompt,
            prompt_length=len(prompt),
            limit=limit,
            max_tokens=options.max_tokens if options.HasField("max_tokens") else limit - len(prompt),
            sampling=sampling_of(options.sampling),
            output=Output(self.tokenizer.detokenizer(), list(options.stop)),
            constraint=constraint,
            ignore_eos=options.ignore_eos,
            logprobs=options.logprobs if options.HasField("logprobs") else None,
            share=run.share if run.HasField("share") else run.uid,
            weight=run.weight or 1.0,
            batch=run.batch,
        )
        _replay(request, run.sent_token_ids)
        return request

    def _limit_of(self, run: Run) -> int:
        return min(self.limit, run.longest_context or self.limit)

    def _check_ids(self, ids: Sequence[int], limit: int) -> None:
        if not ids:
            raise InvalidRequest("the prompt is empty", "send at least one token", field="prompt")
        if len(ids) >= limit:
            raise _too_long(f"{len(ids)} tokens", limit)
        if max(ids) >= self.vocabulary:
            raise InvalidRequest(f"token id {max(ids)} is not in the vocabulary",
                                 f"ids are below {self.vocabulary}", field="token_ids")


def _check_size(call: Encode, most_bytes: int, messages: int) -> int:
    """What a call costs at most. Raises InvalidRequest when it cannot fit, whatever its tokens are.

    Each token stands for a bounded number of bytes, each message for at least one token.
    """
    size, cost = call.ByteSize(), 0
    if call.WhichOneof("input") == "chat":
        if not call.chat.messages:
            raise InvalidRequest("there are no messages", "send at least one", field="messages")
        if len(call.chat.messages) > messages:
            raise _too_long(f"{len(call.chat.messages)} messages", messages)
        cost = MESSAGE_COST * len(call.chat.messages)
        size -= MESSAGE_COST * len(call.chat.messages)
    if size > most_bytes + MESSAGE_COST:
        raise InvalidRequest(f"the prompt has about {size} bytes of text, more than {most_bytes}",
                             "shorten it, send it in parts, or load the model with a larger kv_budget", field="prompt")
    return max(0, size) + cost


def _too_long(what: str, limit: int) -> InvalidRequest:
    return InvalidRequest(f"the prompt has {what}, the context {limit} tokens",
                          "shorten the prompt, load the model with a larger kv_budget, or ask for a larger quota",
                          field="prompt")


def check_options(options: public.Options) -> None:
    """Raises InvalidRequest naming the option that is out of its range. Nothing here depends on the model."""
    if options.HasField("max_tokens") and options.max_tokens == 0:
        raise InvalidRequest("max_tokens is 0", "leave it out or ask for one at least", field="options.max_tokens")
    if len(options.stop) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in options.stop):
        raise InvalidRequest("too many, too long or empty stop strings",
                             f"at most {MOST_STOPS} of 1 to {LONGEST_STOP} characters", field="options.stop")
    if options.logprobs > MOST_LOGPROBS:
        raise InvalidRequest(f"logprobs is {options.logprobs}", f"at most {MOST_LOGPROBS}", field="options.logprobs")
    if len(options.json_schema) > LONGEST_SCHEMA:
        raise InvalidRequest(f"the schema has {len(options.json_schema)} characters",
                             f"at most {LONGEST_SCHEMA} are accepted", field="options.json_schema")
    sampling_of(options.sampling)


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


def sampling_of(message: public.Sampling) -> Sampling:
    """The fields that are set, the defaults for the others. Raises InvalidRequest."""
    given = {field.name: value for field, value in message.ListFields()}
    sampling = Sampling(**given)
    sampling.check()
    return sampling


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
