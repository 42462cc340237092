"""What does `nvstream generate` do, and how is any stream of tokens shown?"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nvstream.cli import options
from nvstream.cli.exits import guard
from nvstream.cli.interrupts import Interruptible
from nvstream.cli.output import print_event, usage_lines, write
from nvstream.cli.waiting import Waiting, describe
from nvstream.client import Stream
from nvstream.events import Delta

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT|-", help="The text to continue; - or nothing: standard input."),
]


def generate(
    context: typer.Context,
    model: options.ModelName,
    prompt: Prompt = None,
    *,
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
    """Continues a text; the tokens appear as they come. Ctrl-C stops the generation on the server too."""
    with guard(as_json):
        text = options.text_or_stdin(prompt)
        if text is None:
            raise typer.BadParameter("give a prompt, or - to type one", param_hint="PROMPT")
        given = options.generation(context.params)
        with (
            options.connect(context, socket) as client,
            client.generate(model, text, timeout=timeout, **given) as stream,
        ):
            play(stream, as_json, stats)


def play(stream: Stream, as_json: bool, stats: bool) -> None:
    """Writes a stream's events as they come, to its end. Raises NvstreamError, BrokenPipeError,
    KeyboardInterrupt.
    """
    ended_line = True
    with Waiting() as waiting, Interruptible(stream) as events:
        try:
            for event in events:
                if as_json or (isinstance(event, Delta) and event.text):
                    waiting.done()
                elif (line := describe(event)) is not None:
                    waiting.show(line)
                print_event(event, as_json)
                if isinstance(event, Delta) and event.text:
                    ended_line = event.text.endswith("\n")
        finally:
            waiting.done()
            # On a terminal what follows gets a line of its own; a pipe gets the exact text.
            if not as_json and not ended_line and sys.stdout.isatty():
                write("\n")
    if stats and stream.finished is not None:
        sys.stderr.write("".join(f"{line}\n" for line in usage_lines(stream.finished.usage)))
