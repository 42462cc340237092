"""Does any message to any method lead to something other than an answer or an error that says what was wrong?

Messages are made from the descriptors of the services, so that a new method is fuzzed by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nvstream.v1 import inference_pb2, models_pb2, status_pb2
from nvstreamd.api import permissions
from nvstreamd.errors import STATUSES
from support.as_user import may_become_others, other
from support.attacks import raw_call
from support.daemon import Daemon, running
from support.dial import channel
from support.others import open_folder
from support.random_gguf import write
from support.shapes import tiny

# Every method of every service that the daemon serves.
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (inference_pb2, models_pb2, status_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
LONGEST = 1 << 16
CALL_SECONDS = 20.0
# What a stream that never ends by itself is given.
WATCH_SECONDS = 0.2
ENDLESS = {"/grpc.health.v1.Health/Watch"}
MODEL, SPARE, UID = "m", "spare", 20_001
# What no caller has to see: an error that nobody thought of.
UNKNOWN = {"UNKNOWN", "INTERNAL", "DATA_LOSS"}
ADMINISTRATORS = {f"/{method}" for method, who in permissions.TABLE.items() if who == permissions.ADMINISTRATORS}
# Each of these takes a process; each look at an endless one its whole time.
COSTLY = {"/nvstream.v1.Models/Import": 10, "/nvstream.v1.Models/Load": 10, "/grpc.health.v1.Health/Watch": 5}
# How a call ends: status, text, bytes of metadata. Asked with method, message and deadline.
Call = Callable[[str, bytes, float], tuple[str, str, int]]

ODD = st.sampled_from([
    "", "\0", "a\0b", "\u202eabc", "\u2066\u2069", "\ufeff", "\ufffd", "\U0010ffff", "e\u0301" * 50, "\r\n\t\x1b[2J",
    "<|im_start|>", "../../etc/passwd", "/dev/zero", "/proc/self/mem", "%s%n{}", "x" * LONGEST, "\u0000" * 300,
    "{" * 2000, "\U0001f469\u200d\U0001f469" * 200,
])
TEXTS = st.one_of(ODD, st.text(max_size=40), st.text(max_size=4).map(lambda piece: (piece * LONGEST)[: LONGEST // 4]))
SCHEMAS = st.sampled_from(['{"enum": []}', "[" * 500, '{"$ref": "#"}', '{"type": "string", "pattern": "(a+)+$"}'])
# `harmless` puts the test's own directory in the place of the @.
SOURCES = st.sampled_from(["@/m.gguf/x", "@/m-00001-of-99999.gguf", "@/\0", "/dev/zero", "@", "@/fuzz.toml"])
PLACES = st.sampled_from(["/b", "/a\0b", "/" + "x" * 300, "/\u202e\n", "/" + "y/" * 2000, "/" + "y/" * 500])
# What fields are called, and what makes sense in them; most of a message does, so that what does not is come to.
SENSE: dict[str, list[str]] = {
    "model": [MODEL, SPARE], "service": [MODEL, ""], "json_schema": ['{"type": "boolean"}'],
    "source": ["@/m.gguf"], "name": ["imported"], "directories": ["/a"], "text": ["the he", "on"], "role": ["user"],
}
NONSENSE = {"json_schema": st.one_of(SCHEMAS, TEXTS), "source": st.one_of(SOURCES, TEXTS),
            "directories": st.one_of(PLACES, TEXTS)}
# Two ways to say where, of which one may be used.
SELDOM = {"devices"}
F = FieldDescriptor
EDGES: dict[str, tuple[int, int]] = {"INT32": (-(2**31), 2**31 - 1), "SINT32": (-(2**31), 2**31 - 1),
                                     "SFIXED32": (-(2**31), 2**31 - 1), "INT64": (-(2**63), 2**63 - 1),
                                     "SINT64": (-(2**63), 2**63 - 1), "SFIXED64": (-(2**63), 2**63 - 1),
                                     "UINT32": (0, 2**32 - 1), "FIXED32": (0, 2**32 - 1), "UINT64": (0, 2**64 - 1),
                                     "FIXED64": (0, 2**64 - 1)}
SANE_NUMBERS, SANE_SIZES = st.sampled_from([1, 2, 5]), st.sampled_from([1 << 20, 16 << 20])
NUMBERS: dict[int, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    **{getattr(F, f"TYPE_{name}"): (SANE_NUMBERS, st.one_of(st.sampled_from([*edges, 0]), st.integers(*edges)))
       for name, edges in EDGES.items()},
    **dict.fromkeys((F.TYPE_FLOAT, F.TYPE_DOUBLE), (st.sampled_from([0.5, 1.0]), st.one_of(
        st.sampled_from([0.0, -0.0, 1e-45, 3e38, -3e38]), st.floats(width=32)))),
    F.TYPE_BOOL: (st.booleans(), st.booleans()),
    F.TYPE_BYTES: (st.binary(max_size=200), st.binary(max_size=200)),
}
MOSTLY = 9


def of_field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one field, or of one item of a repeated one: nine in ten make sense."""
    if field.type == F.TYPE_MESSAGE:
        return of_message(field.message_type)
    if field.type == F.TYPE_ENUM:
        # Enums are open in proto3: any number may come.
        sane: st.SearchStrategy[Any] = st.sampled_from([value.number for value in field.enum_type.values])
        wild: st.SearchStrategy[Any] = st.integers(-5, 2**31 - 1)
    elif field.type == F.TYPE_STRING:
        sane, wild = st.sampled_from(SENSE.get(field.name, ["the"])), NONSENSE.get(field.name, TEXTS)
    else:
        sane, wild = NUMBERS[field.type]
        sane = SANE_SIZES if field.name.endswith("budget") else sane
    return st.integers(0, MOSTLY).flatmap(lambda drawn: wild if drawn == MOSTLY else sane)


def of_message(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, those of SENSE nearly always; of a oneof the last one set wins, as on the wire."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        values = st.deferred(lambda field=field: of_field(field))
        least, most = (0, 3) if field.type == F.TYPE_MESSAGE or field.name == "stop" else (1, 1)
        fields[field.name] = st.lists(values, min_size=least, max_size=most) if field.is_repeated else values
    needed = {name: values for name, values in fields.items() if name in SENSE and name != "json_schema"}
    others = {name: values for name, values in fields.items() if name not in needed}

    def chosen(drawn: int) -> st.SearchStrategy[dict[str, Any]]:
        optional = {name: values for name, values in others.items() if name not in SELDOM or drawn == MOSTLY}
        if drawn == MOSTLY:
            return st.fixed_dictionaries({}, optional={**needed, **optional})
        return st.fixed_dictionaries(needed, optional=optional)

    return st.integers(0, MOSTLY).flatmap(chosen)


def built(descriptor: Descriptor, values: Mapping[str, Any]) -> Message:
    """The message of these values."""
    message: Message = GetMessageClass(descriptor)()
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        if field.is_repeated and field.type == F.TYPE_MESSAGE:
            getattr(message, name).extend(built(field.message_type, item) for item in value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.type == F.TYPE_MESSAGE:
            getattr(message, name).CopyFrom(built(field.message_type, value))
        else:
            setattr(message, name, value)
    return message


@st.composite
def requests(draw: st.DrawFn, descriptor: Descriptor) -> Message | bytes:
    """A message of the method, or something that is none: bytes, or a message that was cut or changed."""
    values = draw(of_message(descriptor))
    # Most answers of a model are long: what is asked for here is short.
    if "options" in values:
        values["options"]["max_tokens"] = draw(st.sampled_from([1, 3]))
    message = built(descriptor, values)
    kind = draw(st.sampled_from([*["whole"] * MOSTLY, "cut", "changed", "bytes"]))
    if kind == "whole":
        return message
    raw = message.SerializeToString()[:4096]
    if kind == "cut":
        return raw[: draw(st.integers(0, max(0, len(raw) - 1)))]
    if kind == "changed" and raw:
        place = draw(st.integers(0, len(raw) - 1))
        return raw[:place] + bytes([draw(st.integers(0, 255))]) + raw[place + 1 :]
    return draw(st.binary(max_size=300))


def harmless(method: str, request: Message | bytes, directory: Path) -> bytes:
    """The request's bytes, so that it asks for nothing that would stay: no unload, imports below `directory` alone."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    message = GetMessageClass(METHODS[method].input_type)()
    try:
        message.MergeFromString(raw)
    except DecodeError:
        return raw
    if isinstance(message, models_pb2.UnloadRequest) and message.model == MODEL:
        message.model = "another"
    elif isinstance(message, models_pb2.ImportRequest):
        message.source = message.source.replace("@", str(directory))
        message.directories[:] = [_below(directory, path) for path in message.directories]
    else:
        return raw
    return message.SerializeToString()


def _below(directory: Path, path: str) -> str:
    """A place that nobody misses, if it is one at all."""
    path = path.replace("@", "").replace("..", "")
    return f"{directory}/scratch/{path.lstrip('/')}" if path.startswith("/") else path


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon, the test's directory, and what a quiet user is told at first."""

    daemon: Daemon
    directory: Path
    ids: list[int]
    pid: int

    def unload_spare(self) -> None:
        """Lets it be loaded again."""
        with suppress(grpc.RpcError):
            self.daemon.unload(SPARE)

    def check_quiet_user(self) -> None:
        """Another connection has the same answer as before, of the same engine."""
        with channel(str(self.daemon.socket)) as own:
            mine = Daemon(self.daemon.process, self.daemon.socket, self.daemon.log, own)
            found = mine.generate(MODEL, [5, 6, 7], timeout=CALL_SECONDS, max_tokens=8, ignore_eos=True)
            assert found.error is None, found.error
            assert found.ids == self.ids and mine.engine(MODEL).pid == self.pid


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with open_folder() as directory:
        for name in (MODEL, SPARE):
            write(directory / f"{name}.gguf", tiny())
        with running(directory, "--memory", "64MiB", "--model-directory", str(directory)) as daemon:
            daemon.load(MODEL, 16 << 20, kv_budget=4 << 20)
            ids = daemon.generate(MODEL, [5, 6, 7], max_tokens=8, ignore_eos=True).ids
            yield Served(daemon, directory, ids, daemon.engine(MODEL).pid)
        log = daemon.log.read_text()
        assert "Traceback" not in log and all(len(line) <= 2100 for line in log.splitlines())


def fuzzed(served: Served, method: str, examples: int, call: Call) -> None:
    """Many messages to a method, and what comes of each held against what may."""
    seconds = WATCH_SECONDS if method in ENDLESS else CALL_SECONDS

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None,
              phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    @given(requests(METHODS[method].input_type))
    def send(request: Message | bytes) -> None:
        status, text, metadata = call(method, harmless(method, request, served.directory), seconds)
        late = status == "DEADLINE_EXCEEDED"
        assert method in ENDLESS or not late, f"{method} does not end"
        assert status == "OK" or status in STATUSES - UNKNOWN, f"{status}: {text}"
        assert "the engine ended" not in text, f"a process died of it: {text}"
        assert len(text.encode()) <= 1300 and (late or text.isprintable()), repr(text)
        assert metadata < 8192
        if method.endswith("/Load"):
            served.unload_spare()

    send()
    served.check_quiet_user()


def as_administrator(served: Served, method: str, examples: int) -> None:
    """Whoever runs the test runs the daemon."""
    with channel(str(served.daemon.socket)) as opened:
        fuzzed(served, method, examples, lambda *call: raw_call(opened, *call))


@pytest.mark.parametrize("method", METHODS)
def test_any_message_has_an_answer_or_a_reason(served: Served, method: str) -> None:
    as_administrator(served, method, COSTLY.get(method, 25))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_great_many_messages_have_an_answer_or_a_reason(served: Served, method: str) -> None:
    as_administrator(served, method, 8 * COSTLY.get(method, 50))


@pytest.mark.skipif(not may_become_others(), reason="NOT TESTED: messages of somebody else: needs root")
def test_any_message_of_any_user_has_an_answer_or_a_reason(served: Served) -> None:
    with other(UID, "raw_calls", socket=str(served.daemon.socket)) as caller:

        def call(method: str, message: bytes, seconds: float) -> tuple[str, str, int]:
            caller.tell(json.dumps([method, message.hex(), seconds]))
            status, text, metadata = json.loads(caller.line())
            assert method not in ADMINISTRATORS or status == "PERMISSION_DENIED", f"{method}: {status}"
            return status, text, metadata

        for method in METHODS:
            fuzzed(served, method, COSTLY.get(method, 10), call)
