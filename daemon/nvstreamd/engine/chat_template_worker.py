"""What can a hostile template reach? Only this small process, which may be killed any time.

Run as `python -I -S chat_template_worker.py DIRECTORY.. LIMITS` by `chat_template`: it imports only the
standard library and jinja2, holds no file but its two pipes, and has hard limits on memory and time.

Protocol: each way one message = 4 bytes length (little-endian) + JSON in UTF-8. A request holds the
template and its variables; the answer holds the text, or the kind of failure and a message.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from jinja2 import Template

_LENGTH = struct.Struct("<I")
Compile = Callable[[str], "Template"]


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _limit_cpu(seconds: int) -> None:
    """Allow this much more processor time; beyond it the kernel ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds + 1)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def make_compile() -> Compile:
    """A compiler of templates with the options that Hugging Face's models are written for."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accepts {% generation %}, which marks what a model is trained on, and means nothing here."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string


def render(template: Template, variables: Mapping[str, Any], limit: int) -> str:
    """The text, built piece by piece so that it can be stopped.

    Raises:
        OverflowError: more than `limit` characters.
    """
    parts: list[str] = []
    size = 0
    for part in template.generate(**variables):
        size += len(part)
        if size > limit:
            raise OverflowError(f"more than {limit} characters of output")
        parts.append(part)
    return "".join(parts)


def _answer(request: Mapping[str, Any], cache: dict[str, Template], compile_: Compile, limit: int) -> object:
    source = request["template"]
    try:
        if source not in cache:
            cache.clear()
            cache[source] = compile_(source)
        return {"text": render(cache[source], request["variables"], limit)}
    except MemoryError:
        return {"failure": "MemoryError", "message": "it needs too much memory"}
    except Exception as error:  # a template is untrusted code: whatever it raises is an answer, not a crash
        return {"failure": type(error).__name__, "message": str(error)[:1000]}


def _read(stream: BinaryIO) -> Mapping[str, Any] | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    request: Mapping[str, Any] = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    return request


def main(memory: int, cpu_seconds: int, limit: int) -> None:
    """Answer requests until the other end closes the pipe."""
    compile_ = make_compile()
    cache: dict[str, Template] = {}
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 16)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while (request := _read(stdin)) is not None:
        _limit_cpu(cpu_seconds)
        body = json.dumps(_answer(request, cache, compile_, limit)).encode()
        stdout.write(_LENGTH.pack(len(body)) + body)
        stdout.flush()


if __name__ == "__main__":
    *directories, _memory, _cpu, _limit_text = sys.argv[1:]
    sys.path.extend(directories)
    main(int(_memory), int(_cpu), int(_limit_text))
