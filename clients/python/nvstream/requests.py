"""How do a caller's arguments become requests, with unset kept apart from zero?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message as ProtobufMessage

from nvstream.errors import InvalidArgument, Violation
from nvstream.sizes import Size, parse_size
from nvstream.v1 import inference_pb2, models_pb2

T = TypeVar("T")

# Some thirty years: gRPC reckons with what a clock can say.
LONGEST_TIMEOUT = 1e9
LONGEST_REASON = 400

_SAMPLING = frozenset(inference_pb2.Sampling.DESCRIPTOR.fields_by_name)


class Options(TypedDict, total=False):
    """Keyword options of `generate` and `chat`. None and absent mean the server's default; 0 means 0.

    `temperature` 0 is greedy. `logprobs`: 0 for the chosen tokens only, N for the N likeliest beside each.
    `penalty_window`: how many of the last tokens the penalties look at. `json_schema`: a mapping, or JSON.
    `speculation`: False verifies no guessed tokens; the answer is the same either way.
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
    speculation: bool | None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role`: "system", "user", "assistant" or one the model's template knows."""

    role: str
    content: str


Messages = Sequence[Message | Mapping[str, str]]


def generate(model: str, prompt: str | Sequence[int], given: Options) -> inference_pb2.GenerateRequest:
    """A request that continues a text, or token ids. Raises InvalidArgument; TypeError for an unknown option."""
    request = inference_pb2.GenerateRequest(options=_options(given))
    _set(request, "model", model)
    if isinstance(prompt, str):
        _set(request, "text", prompt, "prompt")
    else:
        _checked("prompt", lambda: request.token_ids.ids.extend(prompt))
        # No ids are token ids too.
        request.token_ids.SetInParent()
    return request


def chat(model: str, messages: Messages, given: Options) -> inference_pb2.ChatRequest:
    """A request that answers a conversation. Raises InvalidArgument; TypeError for an unknown option."""
    request = inference_pb2.ChatRequest(options=_options(given), messages=_messages(messages))
    _set(request, "model", model)
    return request


def tokenize(model: str, given: str | Messages, add_special: bool) -> inference_pb2.TokenizeRequest:
    """A request for the token ids of a text or of a conversation. Raises InvalidArgument."""
    request = inference_pb2.TokenizeRequest()
    _set(request, "model", model)
    _set(request, "add_special", add_special)
    if isinstance(given, str):
        _set(request, "text", given)
    else:
        request.chat.messages.extend(_messages(given))
        request.chat.SetInParent()
    return request


def get(model: str) -> models_pb2.GetRequest:
    """A request for one model. Raises InvalidArgument."""
    request = models_pb2.GetRequest()
    _set(request, "model", model)
    return request


def unload(model: str) -> models_pb2.UnloadRequest:
    """A request to take a model out of service. Raises InvalidArgument."""
    request = models_pb2.UnloadRequest()
    _set(request, "model", model)
    return request


def load(model: str, budget: Size | None, kv_budget: Size | None, backend: str | None) -> models_pb2.LoadRequest:
    """A request to load a model under ceilings in bytes. Raises InvalidArgument."""
    request = models_pb2.LoadRequest()
    _set(request, "model", model)
    if budget is not None:
        _set(request, "budget", _checked("budget", lambda: parse_size(budget)))
    if kv_budget is not None:
        _set(request, "kv_budget", _checked("kv_budget", lambda: parse_size(kv_budget)))
    if backend is not None:
        _set(request, "backend", backend)
    return request


def import_model(
    source: str | os.PathLike[str],
    name: str | None,
    directories: Iterable[str | os.PathLike[str]],
    devices: Iterable[str],
) -> models_pb2.ImportRequest:
    """A request to pack a GGUF. Paths become absolute here: the daemon's working directory is another.

    Raises InvalidArgument.
    """
    request = models_pb2.ImportRequest()
    _checked("source", lambda: setattr(request, "source", os.path.abspath(source)))
    _checked("directories", lambda: request.directories.extend(os.path.abspath(one) for one in directories))
    _checked("devices", lambda: request.devices.extend(devices))
    if name is not None:
        _set(request, "name", name)
    return request


def seconds(timeout: float | None) -> float | None:
    """A timeout as gRPC understands it. Raises InvalidArgument for what is no number of seconds."""
    if timeout is None:
        return None
    given = _checked("timeout", lambda: float(timeout))
    if not given >= 0:
        raise _invalid("timeout", f"{given} is no number of seconds")
    return given if given < LONGEST_TIMEOUT else None


def _options(given: Options) -> inference_pb2.Options:
    unknown = given.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options = inference_pb2.Options()
    for name, value in values.items():
        _set_option(options, name, value)
    return options


def _set_option(options: inference_pb2.Options, name: str, value: Any) -> None:
    if name == "stop":
        # One string is a sequence of its characters too; nobody means that.
        _checked(name, lambda: options.stop.extend([value] if isinstance(value, str) else value))
    elif name == "json_schema":
        _set(options, name, value if isinstance(value, str) else _checked(name, lambda: json.dumps(value)))
    else:
        _set(options.sampling if name in _SAMPLING else options, name, value)


def _messages(given: Messages) -> list[inference_pb2.ChatMessage]:
    each = _checked("messages", lambda: list(enumerate(given)))
    return [_message(one, f"messages[{index}]") for index, one in each]


def _message(given: Message | Mapping[str, str], field: str) -> inference_pb2.ChatMessage:
    if not isinstance(given, Message):
        if not isinstance(given, Mapping) or given.keys() != {"role", "content"}:
            raise _invalid(field, 'a message has exactly "role" and "content"')
        given = Message(given["role"], given["content"])
    message = inference_pb2.ChatMessage()
    _set(message, "role", given.role, f"{field}.role")
    _set(message, "content", given.content, f"{field}.content")
    return message


def _set(message: ProtobufMessage, name: str, value: Any, field: str | None = None) -> None:
    """Sets a field of a message. Raises InvalidArgument, which names it as `field` if that is given."""
    _checked(field or name, lambda: setattr(message, name, value))


def _checked(field: str, make: Callable[[], T]) -> T:
    """The result of `make`. Whatever that raises is the caller's InvalidArgument: a wrong type, a number or a text that
    does not fit.
    """
    try:
        return make()
    except UnicodeEncodeError as error:
        why = f"is not Unicode text: at {error.start} there is half a character, or a byte that was not UTF-8"
        raise _invalid(field, why) from error
    except Exception as error:
        raise _invalid(field, str(error) or type(error).__name__) from error


def _invalid(field: str, why: str) -> InvalidArgument:
    message = f"{field}: {why.encode(errors='backslashreplace').decode()[:LONGEST_REASON]}"
    return InvalidArgument(message, violations=(Violation(field, message),))
