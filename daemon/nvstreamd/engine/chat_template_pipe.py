"""How long does the daemon wait for a template, and how much does it read? The parent's end of the worker."""

from __future__ import annotations

import json
import os
import selectors
import struct
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct("<I")
# An output character takes at most 12 bytes in escaped JSON (two \\uXXXX), and as many to begin and end a stretch
# and an empty one beside it. A template's constants come once, and are no longer than its source.
_ESCAPED = 24
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """The limits of one rendering.

    Attributes:
        seconds: wall clock, from request to answer, start of the process included.
        cpu_seconds: processor time, enforced by the kernel should this process be gone.
        memory: bytes of address space of the worker.
        output: characters of the rendered text.
    """

    seconds: float = 3.0
    cpu_seconds: int = 3
    memory: int = 512 << 20
    output: int = 4 << 20


class WorkerTimeout(Exception):
    """The worker took too long, or died, or broke the protocol."""


class WorkerPipe:
    """One worker process and the questions to it. Not for several threads at once."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the worker needs both pipes")
        self._process, self._limits = process, limits
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def ask(self, request: bytes) -> Mapping[str, Any]:
        """The answer to one request.

        Raises:
            WorkerTimeout: no whole answer in time; the worker must be closed.
        """
        deadline = time.monotonic() + self._limits.seconds
        self._write(_LENGTH.pack(len(request)) + request, deadline)
        size = _LENGTH.unpack(self._read(_LENGTH.size, deadline))[0]
        if size > self._limits.output * _ESCAPED + _CHUNK:
            raise WorkerTimeout("gives too long a text")
        answer: Mapping[str, Any] = json.loads(self._read(size, deadline))
        return answer

    def close(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        self._process.communicate()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._in, selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(self._in, view[:_CHUNK]) :]
            except BrokenPipeError as error:
                raise WorkerTimeout("ends its process: too much memory or too deep a recursion") from error

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._out, selectors.EVENT_READ, deadline)
            chunk = os.read(self._out, min(_CHUNK, size - len(data)))
            if not chunk:
                raise WorkerTimeout("ends its process: too much time, memory or recursion")
            data += chunk
        return bytes(data)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise WorkerTimeout(f"takes longer than {self._limits.seconds:g} seconds")
