"""What does `nvstream status` do?"""

from __future__ import annotations

import typer

from nvstream.cli import options, tables
from nvstream.cli.exits import guard
from nvstream.cli.output import json_line, write


def status(
    context: typer.Context,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Shows the daemon's engines, the paths in use and why, what was expected beside what was measured."""
    with guard(as_json), options.connect(context, socket) as client:
        found = client.status(timeout=timeout)
        if as_json:
            write(json_line(found) + "\n")
        else:
            tables.show(tables.daemon(found))
