"""What do `nvstream models` and its commands do?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nvstream.cli import options, tables
from nvstream.cli.exits import guard
from nvstream.cli.interrupts import Interruptible
from nvstream.cli.output import json_line, note_line, write
from nvstream.cli.waiting import Waiting, describe_import
from nvstream.client import Import
from nvstream.facts import Model

Source = Annotated[str, typer.Argument(metavar="FILE", help="A GGUF (the first file, of a split one).")]
Name = Annotated[str | None, typer.Option("--name", help="Its name; else the file's without its ending.")]
Directories = Annotated[
    list[str] | None,
    typer.Option("--directory", metavar="DIR", help="Where the segments go, one a drive; repeatable."),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="SERIAL", help="A whole drive for the segments instead; repeatable."),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="uring, pread, ...; else the first that works."),
]


def build() -> typer.Typer:
    """The group `models`."""
    group = typer.Typer(help="Lists, inspects, imports, loads and unloads models; alone: lists.")
    group.callback(invoke_without_command=True)(_list_by_default)
    group.command("list")(list_models)
    group.command("get")(get)
    group.command("import")(import_model)
    group.command("load")(load)
    group.command("unload")(unload)
    return group


def _list_by_default(context: typer.Context, as_json: options.Json = False, socket: options.Socket = None) -> None:
    context.obj = socket or context.obj
    if context.invoked_subcommand is None:
        list_models(context, as_json=as_json)


def list_models(
    context: typer.Context,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Lists the models: state, path in use, kernel, expected and measured time of a pass."""
    with guard(as_json), options.connect(context, socket) as client:
        found = client.models(timeout=timeout)
        if as_json:
            lines = [*map(json_line, found), *map(note_line, found.notes)]
            write("".join(line + "\n" for line in lines))
        else:
            tables.show(tables.model_list(found), whole_lines=True)


def get(
    context: typer.Context,
    model: options.ModelName,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Shows everything about one model."""
    with guard(as_json), options.connect(context, socket) as client:
        _print(client.model(model, timeout=timeout), as_json)


def load(
    context: typer.Context,
    model: options.ModelName,
    *,
    budget: options.Budget = None,
    kv_budget: options.KvBudget = None,
    backend: Backend = None,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Brings a model into service under a memory budget; returns when it can answer."""
    with guard(as_json), options.connect(context, socket) as client, Waiting() as waiting:
        waiting.show(f"loading {model}")
        loaded = client.load(model, budget=budget, kv_budget=kv_budget, backend=backend, timeout=timeout)
        waiting.done()
        _print(loaded, as_json)


def unload(
    context: typer.Context,
    model: options.ModelName,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Takes a model out of service."""
    with guard(as_json), options.connect(context, socket) as client:
        client.unload(model, timeout=timeout)
        write(json.dumps({"event": "unloaded", "name": model}) + "\n" if as_json else f"{model} is unloaded\n")


def import_model(
    context: typer.Context,
    source: Source,
    *,
    name: Name = None,
    directory: Directories = None,
    device: Devices = None,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Packs a GGUF into aligned, checksummed segments; run again, it resumes where it stopped."""
    with (
        guard(as_json),
        options.connect(context, socket) as client,
        client.import_model(
            source, name=name, directories=directory or (), devices=device or (), timeout=timeout
        ) as events,
    ):
        _play_import(events, as_json)


def _play_import(events: Import, as_json: bool) -> None:
    with Waiting() as waiting, Interruptible(events) as coming:
        for event in coming:
            if isinstance(event, Model):
                waiting.done()
                _print(event, as_json)
            elif as_json:
                write(json_line(event) + "\n")
            else:
                waiting.show(describe_import(event))


def _print(model: Model, as_json: bool) -> None:
    if as_json:
        write(json_line(model) + "\n")
    else:
        tables.show(tables.model_sheet(model))
