"""Where does the command `nvstream` begin?"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line and exits the process with one of `nvstream.cli.exits.ExitCode`."""
    # gRPC's own log lines repeat on stderr what the error messages say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_missing_streams()
    # Whatever the locale, a pipe carries UTF-8; a terminal that cannot show a character shows a mark.
    for stream in (sys.stdout, sys.stderr):
        encoding = stream.encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors="replace")  # type: ignore[union-attr]
    from nvstream.cli.app import build

    build()(prog_name="nvstream")


def _open_missing_streams() -> None:
    """Fills closed standard descriptors, or gRPC's socket becomes descriptor 1 and hears what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
