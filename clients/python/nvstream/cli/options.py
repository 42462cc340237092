"""Which options do the commands share, and what do they mean?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nvstream.client import Client
from nvstream.requests import Options
from nvstream.sizes import parse_size

_SAMPLING = "Sampling"


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, as `nvstream models` has it.")]
Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The daemon's socket; else $NVSTREAM_SOCKET, the system's daemon, your own daemon.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per event and line on stdout, nothing else there.")]
Stats = Annotated[bool, typer.Option("--stats", help="Says on stderr what the request cost.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Gives up after this time (exit 8)."),
]
Budget = Annotated[
    int | None,
    typer.Option(
        "--budget", metavar="SIZE", parser=_size, help="Ceiling of weights in memory: 60MiB, 1.5GiB, 1000000."
    ),
]
KvBudget = Annotated[
    int | None, typer.Option("--kv-budget", metavar="SIZE", parser=_size, help="Ceiling of the KV cache.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Stops after this many tokens; else at a full context."),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends before this text; repeatable.")]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="JSON|@FILE", help="A schema that the output must satisfy."),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Goes on after the model's end; to measure.")]
Logprobs = Annotated[
    int | None, typer.Option("--logprobs", metavar="N", help="The N likeliest beside each token; see --json.")
]
Speculation = Annotated[
    bool | None, typer.Option("--speculation/--no-speculation", help="Guess tokens, verify several in a pass.")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 is greedy.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Only the K likeliest; 0: all.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Only the likeliest summing to P.", rich_help_panel=_SAMPLING)
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Only those of P times the likeliest's.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="1 is none.", rich_help_panel=_SAMPLING)
]
PresencePenalty = Annotated[
    float | None, typer.Option("--presence-penalty", help="0 is none.", rich_help_panel=_SAMPLING)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", help="0 is none.", rich_help_panel=_SAMPLING)
]
PenaltyWindow = Annotated[
    int | None,
    typer.Option("--penalty-window", help="How many last tokens penalties see.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes the choice repeatable.", rich_help_panel=_SAMPLING)]


def connect(context: typer.Context, socket: str | None) -> Client:
    """A client for the socket given after the command, or before it, or found."""
    return Client(socket or context.obj)


def generation(parameters: Mapping[str, Any]) -> Options:
    """The options that were given on the command line, and only those: unset is not zero."""
    given = {name: parameters[name] for name in Options.__annotations__ if parameters[name] not in (None, [])}
    # A flag that is off was not given either.
    if not given.get("ignore_eos"):
        given.pop("ignore_eos", None)
    schema = given.get("json_schema")
    if schema is not None and schema.startswith("@"):
        try:
            given["json_schema"] = Path(schema[1:]).read_text(encoding="utf-8")
        except ValueError as error:
            raise typer.BadParameter(f"{schema[1:]}: {error}", param_hint="--json-schema") from error
    return cast("Options", given)


def text_or_stdin(text: str | None) -> str | None:
    """The text; standard input for "-", or when none was given and stdin is no terminal; else None.

    One line end at the end of standard input is dropped: `echo` means the text before it.
    """
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        return None
    try:
        read = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not UTF-8: {error}") from error
    return read.removesuffix("\n").removesuffix("\r")
