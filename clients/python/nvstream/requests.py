"""How do a caller's arguments become requests, with unset kept apart from zero?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from nvstream.errors import InvalidArgument, Violation
from nvstream.sizes import Size, parse_size
from nvstream.v1 import inference_pb2, models_pb2

T = TypeVar("T")

_SAMPLING = frozenset(inference_pb2.Sampling.DESCRIPTOR.fields_by_name)


class Options(TypedDict, total=False):
    """Keyword options of `generate` and `chat`. None and absent mean the server's default; 0 means 0.

    `temperature` 0 is greedy. `logprobs`: 0 for the chosen tokens only, N for the N likeliest beside each.
    `penalty_window`: how many of the last tokens the penalties look at. `json_schema`: a mapping, or JSON.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_window: int | None
    seed: int | None
    logprobs: int | None
    json_schema: Mapping[str, Any] | str | None
    ignore_eos: bool | None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role`: "system", "user", "assistant" or one the model's template knows."""

    role: str
    content: str


Messages = Sequence[Message | Mapping[str, str]]


def generate(model: str, prompt: str | Sequence[int], given: Options) -> inference_pb2.GenerateRequest:
    """A request that continues a text, or token ids. Raises InvalidArgument, TypeError."""
    options = _options(given)
    if isinstance(prompt, str):
        return inference_pb2.GenerateRequest(model=model, text=prompt, options=options)
    ids = _checked("prompt", lambda: inference_pb2.TokenIds(ids=prompt))
    return inference_pb2.GenerateRequest(model=model, token_ids=ids, options=options)


def chat(model: str, messages: Messages, given: Options) -> inference_pb2.ChatRequest:
    """A request that answers a conversation. Raises InvalidArgument, TypeError."""
    return inference_pb2.ChatRequest(model=model, messages=_messages(messages), options=_options(given))


def tokenize(model: str, given: str | Messages, add_special: bool) -> inference_pb2.TokenizeRequest:
    """A request for the token ids of a text or of a conversation. Raises InvalidArgument."""
    if isinstance(given, str):
        return inference_pb2.TokenizeRequest(model=model, text=given, add_special=add_special)
    conversation = inference_pb2.ChatInput(messages=_messages(given))
    return inference_pb2.TokenizeRequest(model=model, chat=conversation, add_special=add_special)


def load(model: str, budget: Size | None, kv_budget: Size | None, backend: str | None) -> models_pb2.LoadRequest:
    """A request to load a model under ceilings in bytes. Raises InvalidArgument."""
    request = models_pb2.LoadRequest(model=model)
    if budget is not None:
        request.budget = _checked("budget", lambda: parse_size(budget))
    if kv_budget is not None:
        request.kv_budget = _checked("kv_budget", lambda: parse_size(kv_budget))
    if backend is not None:
        request.backend = backend
    return request


def import_model(
    source: str | os.PathLike[str],
    name: str | None,
    directories: Iterable[str | os.PathLike[str]],
    devices: Iterable[str],
) -> models_pb2.ImportRequest:
    """A request to pack a GGUF. Paths become absolute here: the daemon's working directory is another."""
    request = models_pb2.ImportRequest(
        source=os.path.abspath(source),
        directories=[os.path.abspath(one) for one in directories],
        devices=devices,
    )
    if name is not None:
        request.name = name
    return request


def _options(given: Options) -> inference_pb2.Options:
    unknown = given.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options = inference_pb2.Options()
    for name, value in values.items():
        _set(options, name, value)
    return options


def _set(options: inference_pb2.Options, name: str, value: Any) -> None:
    if name == "stop":
        # One string is a sequence of its characters too; nobody means that.
        options.stop.extend([value] if isinstance(value, str) else value)
    elif name == "json_schema":
        options.json_schema = value if isinstance(value, str) else json.dumps(value)
    elif name in _SAMPLING:
        _checked(name, lambda: setattr(options.sampling, name, value))
    else:
        _checked(name, lambda: setattr(options, name, value))


def _messages(given: Messages) -> list[inference_pb2.ChatMessage]:
    return [_message(one, f"messages[{index}]") for index, one in enumerate(given)]


def _message(given: Message | Mapping[str, str], field: str) -> inference_pb2.ChatMessage:
    if isinstance(given, Message):
        return inference_pb2.ChatMessage(role=given.role, content=given.content)
    if given.keys() != {"role", "content"}:
        raise _invalid(field, 'a message has exactly "role" and "content"')
    return inference_pb2.ChatMessage(role=given["role"], content=given["content"])


def _checked(field: str, make: Callable[[], T]) -> T:
    """What `make` returns; a number that does not fit its field is the caller's InvalidArgument."""
    try:
        return make()
    except ValueError as error:
        raise _invalid(field, str(error)) from error


def _invalid(field: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {why}", violations=(Violation(field, why),))
