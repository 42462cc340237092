"""How does a call become a request that can be scheduled? Its length, its token ids, limits, options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nvstreamd.engine.commands import Call, Encode, Options, Run, Written
from nvstreamd.engine.constraint import LONGEST_SCHEMA, Constraints
from nvstreamd.engine.output import Output
from nvstreamd.engine.preparation.questions import CHEAP, MESSAGE_COST, Ask
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling
from nvstreamd.engine.tokenizer import Tokenizer, TokenizerError
from nvstreamd.errors import BadModelFile, InvalidRequest

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

    def questions(self, call: Call) -> list[Ask]:
        """The questions to be answered before a call can go on. Raises InvalidRequest for what lengths alone tell."""
        if isinstance(call, Encode):
            return [self._question(call.written, LONGEST_TEXT, self.limit)]
        asks: list[Ask] = []
        limit = self._limit_of(call)
        check_options(call.options)
        if isinstance(call.prompt, Written):
            asks.append(self._question(call.prompt, limit * self._longest_token, limit))
        else:
            self._check_ids(call.prompt, limit)
        if call.options.json_schema is not None:
            # Nobody can tell from its length what a schema costs.
            asks.append(Ask.of_schema(call.options.json_schema, CHEAP + 1))
        return asks

    def _question(self, written: Written, most_bytes: int, messages: int) -> Ask:
        cost = _check_size(written, most_bytes, messages)
        return Ask.of_text(written.pack(), cost)

    def request(self, run: Run, ids: list[int] | None, schema: str | None = None) -> Request:
        """A call ready to be scheduled, brought to where its client has it. Raises InvalidRequest.

        `ids` are those of its text, None when the call brought ids itself; `schema` is its own, checked.
        """
        limit = self._limit_of(run)
        prompt = (ids or []) if isinstance(run.prompt, Written) else list(run.prompt)
        self._check_ids(prompt, limit)
        options = run.options
        constraint = None if schema is None else self.constraints.compile(schema)
        request = Request(
            id=run.id,
            uid=run.uid,
            tokens=prompt,
            prompt_length=len(prompt),
            limit=limit,
            max_tokens=limit - len(prompt) if options.max_tokens is None else options.max_tokens,
            sampling=sampling_of(options.sampling),
            output=Output(self.tokenizer.detokenizer(), list(options.stop)),
            constraint=constraint,
            ignore_eos=options.ignore_eos,
            speculates=options.speculates,
            logprobs=options.logprobs,
            share=run.share,
            weight=run.weight,
            batch=run.batch,
        )
        _replay(request, run.sent)
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


def _check_size(written: Written, most_bytes: int, messages: int) -> int:
    """The most that a text costs. Raises InvalidRequest when it cannot fit, whatever its tokens are.

    Each token stands for a bounded number of bytes, each message for at least one token.
    """
    size, cost = written.size, 0
    if written.messages is not None:
        if not written.messages:
            raise InvalidRequest("there are no messages", "send at least one", field="messages")
        if written.messages > messages:
            raise _too_long(f"{written.messages} messages", messages)
        cost = MESSAGE_COST * written.messages
        size -= cost
    if size > most_bytes + MESSAGE_COST:
        raise InvalidRequest(f"the prompt has about {size} bytes of text, more than {most_bytes}",
                             "shorten it, send it in parts, or load the model with a larger kv_budget", field="prompt")
    return max(0, size) + cost


def _too_long(what: str, limit: int) -> InvalidRequest:
    return InvalidRequest(f"the prompt has {what}, the context {limit} tokens",
                          "shorten the prompt, load the model with a larger kv_budget, or ask for a larger quota",
                          field="prompt")


def check_options(options: Options) -> None:
    """Raises InvalidRequest naming the option that is out of its range. Nothing here depends on the model."""
    if options.max_tokens == 0:
        raise InvalidRequest("max_tokens is 0", "leave it out or ask for one at least", field="options.max_tokens")
    if len(options.stop) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in options.stop):
        raise InvalidRequest("too many, too long or empty stop strings",
                             f"at most {MOST_STOPS} of 1 to {LONGEST_STOP} characters", field="options.stop")
    if options.logprobs is not None and options.logprobs > MOST_LOGPROBS:
        raise InvalidRequest(f"logprobs is {options.logprobs}", f"at most {MOST_LOGPROBS}", field="options.logprobs")
    if options.json_schema is not None and len(options.json_schema) > LONGEST_SCHEMA:
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


def sampling_of(said: Mapping[str, Any]) -> Sampling:
    """The fields that were said, the defaults for the others. Raises InvalidRequest."""
    sampling = Sampling(**said)
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
