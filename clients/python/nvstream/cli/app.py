"""Which commands does `nvstream` have?"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from nvstream.cli import chat, generation, models, options, status
from nvstream.cli.exits import EXIT_CODES_HELP


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        help="Streams language models from NVMe, through the daemon nvstreamd on this machine.",
        epilog=EXIT_CODES_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_remember_socket)
    app.command(epilog=EXIT_CODES_HELP)(generation.generate)
    app.command(epilog=EXIT_CODES_HELP)(chat.chat)
    app.add_typer(models.build(), name="models", epilog=EXIT_CODES_HELP)
    app.command(epilog=EXIT_CODES_HELP)(status.status)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"nvstream {version('nvstream')}\n")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Prints the version.", callback=_show_version, is_eager=True)]


def _remember_socket(context: typer.Context, socket: options.Socket = None, version: Version = False) -> None:
    context.obj = socket
