"""How do chat messages become one prompt? By the model's own template, rendered where it can do no harm.

A template comes with the model file and is a program: it runs in `chat_template_worker`, a process with
limits on time, memory and output, which is killed and replaced when it oversteps.

What users wrote must not turn into control tokens, whatever a template does to it. So the worker renders with strings
that know, character by character, whether the template itself wrote them (`chat_template_own`): only those may spell
control tokens. A caller's contents, role names, tools and any other field are text, and so is all whose origin was lost
on the way.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final

from nvstreamd.engine.chat_template_pipe import Limits, WorkerPipe, WorkerTimeout
from nvstreamd.engine.tokenizer.errors import ChatTemplateError

KEY: Final = "tokenizer.chat_template"
MAX_TEMPLATE: Final = 1 << 20
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OTHER_FILE = "use a model file with a working template, or send plain prompts instead of messages"
# Some templates make tokens of roles: "<|" + role + "|>". Of those named here a model may know a token; any other
# role is a caller's text, and never one.
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function", "observation", "model")

Message = Mapping[str, object]


@dataclass(frozen=True)
class Passage:
    """A stretch of a prompt.

    Attributes:
        text: never empty.
        special: whether text that spells control tokens means them (`encode(parse_special=...)`).
    """

    text: str
    special: bool


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        passages: in order; their texts joined are the prompt. No control token reaches from one into the next.
        structure: every text that the template itself may write. What a token of the vocabulary means in there it
            must not mean in a message, even where the vocabulary finds it in any text.
    """

    passages: tuple[Passage, ...]
    structure: str = ""

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(passage.text for passage in self.passages)


@dataclass(frozen=True)
class ChatTemplate:
    """One template of a model file, with the token texts it may use."""

    field: str
    source: str
    bos_token: str
    eos_token: str


def find_template(metadata: Mapping[str, object], name: str | None = None) -> ChatTemplate:
    """The chat template of a GGUF's metadata, or its variant of this name.

    Raises:
        ChatTemplateError: there is none, or it is no text of reasonable size.
    """
    field = KEY if name is None else f"{KEY}.{name}"
    source = metadata.get(field)
    if source is None:
        variants = sorted(key.removeprefix(KEY + ".") for key in metadata if key.startswith(KEY + "."))
        hint = f"this file has the variants {', '.join(variants)}" if variants else _OTHER_FILE
        raise ChatTemplateError(field, "the model file has no such chat template", hint)
    if not isinstance(source, str) or not 0 < len(source) <= MAX_TEMPLATE:
        raise ChatTemplateError(field, f"is not a text of 1 to {MAX_TEMPLATE} characters", _OTHER_FILE)
    return ChatTemplate(field, source, _token_text(metadata, "bos"), _token_text(metadata, "eos"))


def _token_text(metadata: Mapping[str, object], name: str) -> str:
    """The text of a special token; empty when the file names none (`load` reports broken ids)."""
    token, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(token, int) or not isinstance(tokens, Sequence) or not 0 <= token < len(tokens):
        return ""
    text = tokens[token]
    return text if isinstance(text, str) else ""


class Renderer:
    """Renders templates in one worker process, started when first needed. Safe to share between threads.

    Args:
        limits: of one rendering.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._lock = Lock()
        self._pipe: WorkerPipe | None = None
        self._structures: dict[ChatTemplate, str] = {}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker process. The renderer can be used again afterwards."""
        with self._lock:
            self._drop()

    def render(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> Prompt:
        """The prompt for these messages.

        Args:
            template: from `find_template`.
            messages: dictionaries with a `role` and a `content`; anything else in them passes as it is.
            add_generation_prompt: end with what makes the model answer.
            tools: descriptions of functions, for templates that know them.

        Raises:
            ChatTemplateError: the template fails, refuses the messages or oversteps a limit.
            ValueError: a role is not a short plain word, or a message is no JSON.
        """
        for message in messages:
            _check_role(message.get("role"))
        variables = {"add_generation_prompt": add_generation_prompt, "tools": tools, "documents": None}
        with self._lock:
            known = self._structures.get(template)
            answer = self._answer(template, {
                "template": template.source, "messages": list(messages), "variables": variables, "roles": ROLES,
                "own": {"bos_token": template.bos_token, "eos_token": template.eos_token}, "constants": known is None,
            })  # fmt: skip
            if known is None:
                known = "\0".join((*answer["constants"], template.bos_token, template.eos_token))
                self._structures = {template: known}
        return Prompt(_passages(answer["parts"]), known)

    def _answer(self, template: ChatTemplate, request: Mapping[str, object]) -> Mapping[str, Any]:
        answer = self._ask(template, json.dumps(request).encode())
        if "failure" in answer:
            raise ChatTemplateError(
                template.field,
                f"the template fails: {answer['failure']}: {answer['message']}",
                f"check the order and the roles of the messages; else {_OTHER_FILE}",
            )
        return answer

    def _ask(self, template: ChatTemplate, request: bytes) -> Mapping[str, Any]:
        if self._pipe is None:
            self._pipe = WorkerPipe(_start(self._limits), self._limits)
        try:
            answer = self._pipe.ask(request)
        except WorkerTimeout as error:
            self._drop()
            raise ChatTemplateError(template.field, f"the template {error}", _OTHER_FILE) from error
        if "failure" in answer:
            # What a failed template left in memory is not worth keeping.
            self._drop()
        return answer

    def _drop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    worker = Path(__file__).with_name("chat_template_worker.py")
    directories = {str(Path(_origin(name)).parent.parent) for name in ("jinja2", "markupsafe", "nvstreamd")}
    numbers = (str(limits.memory), str(limits.cpu_seconds), str(limits.output))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(worker), *sorted(directories), *numbers],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/",
    )  # fmt: skip


def _origin(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ChatTemplateError(
            KEY, f"needs the Python package {module}", "install nvstreamd with its dependencies"
        )
    return spec.origin


def _check_role(role: object) -> None:
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise ValueError(f"a role must be a short plain word, not {str(role)[:64]!r}")


def _passages(parts: Sequence[str]) -> tuple[Passage, ...]:
    """The passages of `parts`, which are a caller's text and the template's in turn."""
    return tuple(Passage(text, index % 2 == 1) for index, text in enumerate(parts) if text)
