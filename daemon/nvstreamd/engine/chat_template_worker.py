"""What can a hostile template reach? Only this small process, which may be killed any time.

Run as `python -I -S chat_template_worker.py DIRECTORY.. LIMITS` by `chat_template`: it imports only the
standard library, jinja2 and three files beside it, holds no file but its two pipes, and has hard limits on memory and
time.

Protocol: each way one message = 4 bytes length (little-endian) + JSON in UTF-8. Questions and answers:
`chat_template_render.answer`.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<I")


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _limit_cpu(seconds: int) -> None:
    """Allow this much more processor time; beyond it the kernel ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds + 1)


def _read(stream: BinaryIO) -> Mapping[str, Any] | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    request: Mapping[str, Any] = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    return request


def main(memory: int, cpu_seconds: int, limit: int) -> None:
    """Answer requests until the other end closes the pipe."""
    from nvstreamd.engine.chat_template_render import answer

    cache: dict[str, Any] = {}
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 16)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while (request := _read(stdin)) is not None:
        _limit_cpu(cpu_seconds)
        body = json.dumps(answer(request, cache, limit)).encode()
        stdout.write(_LENGTH.pack(len(body)) + body)
        stdout.flush()


if __name__ == "__main__":
    *directories, _memory, _cpu, _limit_text = sys.argv[1:]
    sys.path.extend(directories)
    main(int(_memory), int(_cpu), int(_limit_text))
