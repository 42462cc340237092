"""What does the command `nvstreamd` do? It serves until it is stopped, or does what an administrator asks."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

from nvstreamd.administration import add_commands, run
from nvstreamd.config import load_config
from nvstreamd.errors import NvstreamError
from nvstreamd.systemd import log_to_the_journal


class ShowVersion(argparse.Action):
    """Ends with the version. It is looked up when it is asked for: that takes longer than a command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints the version and ends the command."""
        from importlib.metadata import version

        sys.stdout.write(f"nvstreamd {version('nvstreamd')}\n")
        parser.exit()


def arguments() -> argparse.Namespace:
    """The command line. What is not given is left to the configuration file."""
    parser = argparse.ArgumentParser(prog="nvstreamd", description="Serves models larger than memory.")
    parser.add_argument("--version", nargs=0, action=ShowVersion, help="prints the version")
    parser.add_argument("--config", type=Path, help="a TOML file, see docs/administrator.md")
    parser.add_argument("--socket", type=Path, help="path of the public Unix socket")
    parser.add_argument("--memory", help="ceiling of the weights in memory, for instance 60MiB")
    parser.add_argument("--kv-memory", dest="kv_memory", help="for each model a KV cache beside `memory`, as before")
    parser.add_argument("--store", type=Path, help="directory of packed models")
    parser.add_argument("--model-directory", dest="model_directories", type=Path, action="append",
                        help="a directory whose GGUF files are offered (repeatable)")
    parser.add_argument("--model", dest="models", action="append", metavar="NAME=PATH",
                        help="a model to load at start (repeatable)")
    parser.add_argument("--threads", type=int, help="compute threads (default: all CPUs)")
    parser.add_argument("--backend", dest="backends", action="append",
                        help="how to read: nvme_host, uring, pread (repeatable)")
    parser.add_argument("--kernel", dest="kernels", action="append",
                        help="what multiplies: gpu, cpu, torch (repeatable)")
    parser.add_argument("--vram", help="ceiling of a card's memory, for instance 20GiB (default: what is free)")
    add_commands(parser)
    return parser.parse_args()


def overrides(given: argparse.Namespace) -> dict[str, Any]:
    """The command line as configuration values."""
    given_values = vars(given).items()
    values = {key: value for key, value in given_values if value is not None and key not in ("config", "command")}
    for model in values.pop("models", []):
        name, _, path = model.partition("=")
        values.setdefault("models", []).append({"name": name, "path": path})
    return values


def main() -> int:
    """Exit status 0 after a drained stop, 1 when the daemon could not start or go on."""
    # Whatever it was started with: nobody else writes what the daemon and its engines make.
    os.umask(os.umask(0o022) | 0o022)
    log_to_the_journal()
    given = arguments()
    try:
        if given.command is not None:
            return run(given)
        # Only serving needs grpc: the other commands answer at once.
        from nvstreamd.app import App

        asyncio.run(App(load_config(given.config, overrides(given))).run())
    except NvstreamError as error:
        logging.getLogger("nvstreamd").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
