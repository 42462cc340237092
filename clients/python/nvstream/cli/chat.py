"""What does `nvstream chat` do, in one shot and as a conversation?"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from nvstream.cli import options
from nvstream.cli.exits import guard, report
from nvstream.cli.generation import play
from nvstream.client import Client, Stream
from nvstream.errors import NvstreamError
from nvstream.requests import Message, Messages, Options

Said = Annotated[
    str | None,
    typer.Argument(metavar="MESSAGE|-", help="What to say; - or a pipe: standard input. None: a conversation."),
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model shall be.")]

_HELP = "/quit ends, /reset forgets the conversation, /system TEXT sets what the model shall be"
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)

Ask = Callable[[Messages], Stream]


def chat(
    context: typer.Context,
    model: options.ModelName,
    message: Said = None,
    *,
    system: System = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    logprobs: options.Logprobs = None,
    ignore_eos: options.IgnoreEos = False,
    speculation: options.Speculation = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    penalty_window: options.PenaltyWindow = None,
    seed: options.Seed = None,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    stats: options.Stats = False,
    socket: options.Socket = None,
) -> None:
    """Answers a message, or holds a conversation: /quit, /reset, /system TEXT; Ctrl-C stops an answer."""
    with guard(as_json):
        said = options.text_or_stdin(message)
        given = options.generation(context.params)
        with options.connect(context, socket) as client:
            conversation = Conversation(_asker(client, model, timeout, given), system, stats)
            if said is not None:
                conversation.answer_once(said, as_json)
            elif as_json:
                raise typer.BadParameter("--json needs a message", param_hint="MESSAGE")
            else:
                conversation.run()


def _asker(client: Client, model: str, timeout: float | None, given: Options) -> Ask:
    return lambda messages: client.chat(model, messages, timeout=timeout, **given)


class Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, ask: Ask, system: str | None, stats: bool) -> None:
        self._ask = ask
        self._system = system
        self._stats = stats
        self._turns: list[Message] = []

    def answer_once(self, said: str, as_json: bool) -> None:
        """Writes the answer to one message. Raises NvstreamError."""
        with self._ask(self._messages(said)) as stream:
            play(stream, as_json, self._stats)

    def run(self) -> None:
        """Reads and answers until /quit or the end of input."""
        _edit_lines()
        _note(_HELP)
        while (line := _read_line()) is not None:
            command = _COMMAND.fullmatch(line)
            if command is None:
                self._answer(line)
            elif not self._obey(command[1], command[2] or ""):
                return

    def _obey(self, command: str, rest: str) -> bool:
        """Follows a command; False ends the conversation."""
        match command:
            case "quit":
                return False
            case "reset":
                self._turns.clear()
                _note("the conversation is forgotten")
            case "system":
                self._system = rest or None
                _note("the system message is set" if rest else "there is no system message now")
            case _:
                _note(f"/{command} is unknown; {_HELP}")
        return True

    def _answer(self, said: str) -> None:
        """Answers a turn; an interrupted answer stays in the history as far as it came."""
        with self._ask(self._messages(said)) as stream:
            try:
                play(stream, False, self._stats)
            except KeyboardInterrupt:
                stream.cancel()
                _note("stopped")
            except NvstreamError as error:
                # The turn is dropped: the same words can be said again.
                report(error)
                return
        answer = stream.received
        if answer:
            self._turns += [Message("user", said), Message("assistant", answer)]

    def _messages(self, said: str) -> list[Message]:
        system = [Message("system", self._system)] if self._system else []
        return [*system, *self._turns, Message("user", said)]


def _edit_lines() -> None:
    """Gives input() line editing and a history, by readline's import, and takes what is pasted as one message."""
    with suppress(ImportError):
        readline = importlib.import_module("readline")
        # Python switches that off for its own prompt, which wants a line at a time.
        readline.parse_and_bind("set enable-bracketed-paste on")


def _read_line() -> str | None:
    """The next line that says something; None at the end of input. Ctrl-C drops what was typed."""
    while True:
        try:
            line = _input("> ").strip()
        except KeyboardInterrupt:
            _note("")
            continue
        except EOFError:
            _note("")
            return None
        if line:
            return line


def _input(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # Only answers belong into a file or a pipe.
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
