"""Which llama.cpp does a bench measure against, and how is it asked? A process that answers a command a line.

The native build of scripts/build_llamacpp.py when it is there, otherwise the wheel that is the oracle of the tests.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from support.files import ROOT

NATIVE = ROOT / "build/llama.cpp/peer"
PRODUCTS = ROOT / "build/llama.cpp/products"
DEADLINE = 600.0


class PeerError(RuntimeError):
    """The process of that `name` ended or did not answer."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name = name


@dataclass(slots=True)
class Peer:
    """A process of llama.cpp or ggml, or another of that `name`, that answers a command a line."""

    process: subprocess.Popen[bytes]
    name: str = "llama.cpp"

    def answer(self) -> dict[str, Any]:
        """The next line of JSON."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], DEADLINE)[0]:
            raise PeerError(self.name, f"did not answer for {DEADLINE} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(self.name, f"ended with status {self.process.wait(timeout=DEADLINE)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """What a command is answered."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return self.answer()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Its threads spin for a while after an answer: not beside whom it is compared with."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def rate(self, command: str) -> float:
        """Tokens a second of `decode SEQUENCES TOKENS` or `prefill TOKENS`."""
        timing = self.ask(command)
        return float(timing["tokens"]) / float(timing["seconds"])

    def seconds(self, command: str) -> float:
        """How long a product of ggml took, `TYPE WIDTH`."""
        return float(self.ask(command)["seconds"])


def name() -> str:
    """What is measured against, for the table."""
    if NATIVE.exists():
        return "llama.cpp built for this processor (build/llama.cpp/peer)"
    return f"the wheel xllamacpp {version('xllamacpp')}; scripts/build_llamacpp.py makes the native one"


@contextmanager
def peer(path: Path, threads: int, mapped: bool) -> Iterator[Peer]:
    """llama.cpp with the model loaded; `mapped` leaves the weights in the file, where they can be dropped."""
    program = [str(NATIVE)] if NATIVE.exists() else [sys.executable, "-m", "bench.xllamacpp_peer"]
    with asked([*program, str(path), str(threads), "mapped" if mapped else "default"]) as found:
        found.answer()
        yield found


@contextmanager
def ggml_products(threads: int, columns: int, rows: int) -> Iterator[Peer]:
    """ggml's CPU backend, asked for products of one shape."""
    with asked([str(PRODUCTS), str(threads), str(columns), str(rows)]) as found:
        yield found


@contextmanager
def asked(command: list[str], name: str = "llama.cpp") -> Iterator[Peer]:
    """A process while it is asked; then it is killed. What it imports of ours is that of this tree's tests."""
    found = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
    try:
        yield Peer(process, name)
    finally:
        process.kill()
        process.communicate()
