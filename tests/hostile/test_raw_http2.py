"""Does anything that can be said to the daemon's socket cost another user more than a moment?

Each attack is somebody's who writes bytes of his own (support.http2). After each, and while its connections are still
open, another connection's request has the tokens that it always has, and the daemon has not grown.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstreamd.api.guard import MOST_CALLS
from support.daemon import Daemon, running
from support.dial import channel
from support.http2 import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    Frame,
    call_frames,
    frame,
    message,
    packed,
    request_fields,
    settings,
)
from support.random_gguf import write
from support.shapes import tiny

MODEL = "m"
SECONDS = 20.0
MIB = 1 << 20
MOST_GROWTH = 64 * MIB
GENERATE, TOKENIZE = "/nvstream.v1.Inference/Generate", "/nvstream.v1.Inference/Tokenize"
# Written out: the server has no shorter way to say it the first time.
STATUS = b"grpc-status"


@dataclass(frozen=True, slots=True)
class Victim:
    """A daemon, what it weighed at first, and what a quiet user is told."""

    daemon: Daemon
    weight: int
    ids: list[int]
    stack: ExitStack

    def connect(self) -> Connection:
        """A connection of the attacker's, which stays open until the quiet user was served."""
        return self.stack.enter_context(Connection(self.daemon.socket, SECONDS))

    def opened(self, **values: int) -> Connection:
        """One that has said hello."""
        connection = self.connect()
        connection.open(**values)
        return connection


def weight_of(daemon: Daemon) -> int:
    """Bytes of the daemon's process: proc_pid_status(5), VmRSS."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10


def quiet_ids(daemon: Daemon) -> list[int]:
    """What another connection gets, in time."""
    with channel(str(daemon.socket)) as own:
        found = Daemon(daemon.process, daemon.socket, daemon.log, own).generate(
            MODEL, [5, 6, 7], timeout=SECONDS, max_tokens=8, ignore_eos=True)
    assert found.error is None, found.error
    return found.ids


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("http2")
    write(directory / f"{MODEL}.gguf", tiny())
    with running(directory, "--memory", "64MiB", "--model-directory", str(directory)) as started:
        started.load(MODEL, 16 * MIB, kv_budget=4 * MIB)
        quiet_ids(started)
        yield started
    log = started.log.read_text()
    assert "Traceback" not in log and all(len(line) <= 2100 for line in log.splitlines())


@pytest.fixture
def victim(daemon: Daemon) -> Iterator[Victim]:
    pid, weight = daemon.engine(MODEL).pid, weight_of(daemon)
    with ExitStack() as stack:
        yield (found := Victim(daemon, weight, quiet_ids(daemon), stack))
        assert quiet_ids(daemon) == found.ids and daemon.engine(MODEL).pid == pid
    # What is freed late is freed in some seconds: Guard.let_go.
    daemon.wait("the daemon to let go of what it took", lambda: weight_of(daemon) - weight < MOST_GROWTH)
    daemon.wait("its calls to end", lambda: daemon.status().shares[0].open_calls == 1)


def tokenize(text: str = "the he") -> bytes:
    return inference.TokenizeRequest(model=MODEL, text=text).SerializeToString()


def ending(frames: list[Frame]) -> bytes:
    """The trailers of a call."""
    return b"".join(each.payload for each in frames if each.kind == HEADERS)


def test_what_is_said_by_hand_is_understood_when_it_is_right(victim: Victim) -> None:
    """Else the refusals below could have another reason."""
    connection = victim.opened()
    connection.send(call_frames(TOKENIZE, message(tokenize())))
    found = connection.until_end_of(1)
    assert any(each.kind == DATA and each.payload for each in found) and STATUS + b"\x010" in ending(found)


FIELDS = packed(request_fields(TOKENIZE))
SILENT: dict[str, Callable[[random.Random], list[bytes]]] = {
    "nothing": lambda _: [],
    "garbage": lambda dice: [dice.randbytes(1 << 16)],
    "another protocol": lambda _: [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    "half a preface": lambda _: [PREFACE[:12]],
    "a preface, then garbage": lambda dice: [PREFACE, dice.randbytes(1 << 16)],
    "no settings": lambda _: [PREFACE, frame(PING, 0, 0, bytes(8))],
    "settings of a wrong size": lambda _: [PREFACE, frame(SETTINGS, 0, 0, bytes(5))],
    "a frame of 16 MiB": lambda _: [PREFACE, settings(), b"\xff\xff\xff" + bytes([DATA, 0, 0, 0, 0, 1])],
    "a frame of no known kind": lambda _: [PREFACE, settings(), frame(0xEE, 0xFF, 1, bytes(100))],
    "data before headers": lambda _: [PREFACE, settings(), frame(DATA, 0, 1, bytes(100))],
    "an even stream": lambda _: [PREFACE, settings(), frame(HEADERS, END_HEADERS, 2, FIELDS)],
    "headers of no stream": lambda _: [PREFACE, settings(), frame(HEADERS, END_HEADERS, 0, b"")],
    "headers that are no HPACK": lambda dice: [
        PREFACE, settings(), frame(HEADERS, END_HEADERS, 1, dice.randbytes(900))],
    "an index beyond the table": lambda _: [
        PREFACE, settings(), frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\x0f")],
    "a window beyond 2^31": lambda _: [PREFACE, settings(), frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2],
    "a window of nothing more": lambda _: [PREFACE, settings(), frame(WINDOW_UPDATE, 0, 0, bytes(4))],
    "continuation of nothing": lambda _: [PREFACE, settings(), frame(CONTINUATION, END_HEADERS, 1, b"")],
    "a reset of nothing": lambda _: [PREFACE, settings(), frame(RST_STREAM, 0, 1, bytes(4))],
    "goodbye": lambda _: [PREFACE, settings(), frame(GOAWAY, 0, 0, bytes(8))],
}


@pytest.mark.parametrize("what", SILENT)
def test_what_is_no_http2_costs_nobody_anything(victim: Victim, what: str) -> None:
    dice = random.Random(what)
    for _ in range(5):
        victim.connect().send(*SILENT[what](dice))


FLOODS: dict[str, bytes] = {
    "settings": settings(initial_window_size=1) * 20_000,
    "settings that take turns": (settings(header_table_size=0) + settings(header_table_size=4096)) * 10_000,
    "pings": frame(PING, 0, 0, bytes(8)) * 20_000,
    "answers to no ping": frame(PING, ACK, 0, bytes(8)) * 20_000,
    "windows": frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 20_000,
    "priorities": frame(2, 0, 1, bytes(5)) * 20_000,
    "empty data": frame(HEADERS, END_HEADERS, 1, FIELDS) + frame(DATA, 0, 1) * 20_000,
    "continuations without an end": frame(HEADERS, 0, 1, FIELDS)
    + frame(CONTINUATION, 0, 1, packed([("x", "y" * 8000)])) * 1000,
    "empty continuations": frame(HEADERS, 0, 1, FIELDS) + frame(CONTINUATION, 0, 1) * 20_000,
    "rapid reset": b"".join(
        frame(HEADERS, END_HEADERS, stream, FIELDS) + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))
        for stream in range(1, 4001, 2)),
    "calls that are all left": b"".join(
        call_frames(GENERATE, message(inference.GenerateRequest(
            model=MODEL, token_ids=inference.TokenIds(ids=[5, 6, 7])).SerializeToString()), stream)
        + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))
        for stream in range(1, 1001, 2)),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_of_frames_costs_nobody_anything(victim: Victim, what: str) -> None:
    """The attacker does not read: what would be answered to him has no place to go."""
    victim.opened().send(FLOODS[what])


@pytest.mark.parametrize("more", [
    [("x", "y" * (1 << 20))], [("x" * (1 << 16), "y")], [(f"x{n}", "y") for n in range(5000)], [("x", "y")] * 5000,
    [("x-bin", "!" * 5000)], [("grpc-timeout", "1" * 1000)], [("grpc-encoding", "nothing")], [("te", "\x7f\x01")],
], ids=["a huge value", "a huge name", "thousands", "thousands of one name", "bin that is none",
        "a timeout that is none", "an encoding that is none", "control characters"])
def test_headers_of_any_size_and_number_are_answered_or_refused(victim: Victim, more: list[tuple[str, str]]) -> None:
    connection, block = victim.opened(), packed(request_fields(TOKENIZE, *more))
    parts = [block[start : start + (1 << 14)] for start in range(0, len(block), 1 << 14)]
    kinds = [HEADERS, *[CONTINUATION] * (len(parts) - 1)]
    connection.send(*(frame(kind, END_HEADERS if number == len(parts) - 1 else 0, 1, part)
                      for number, (kind, part) in enumerate(zip(kinds, parts, strict=True))),
                    frame(DATA, END_STREAM, 1, message(tokenize())))
    assert connection.until_end_of(1), "the server said something, in time"


BOMB = gzip.compress(inference.TokenizeRequest(model=MODEL, text="a" * (40 * MIB)).SerializeToString())
IN_GZIP = request_fields(TOKENIZE, ("grpc-encoding", "gzip"))
RIGHT, RESET = message(tokenize()), ""
# What is sent, and the status that it ends by: INVALID_ARGUMENT 3, RESOURCE_EXHAUSTED 8, UNIMPLEMENTED 12, and for what
# cannot be read at all gRPC's own INTERNAL, 13, whose text says so; RESET where there is no status.
CALLS: dict[str, tuple[bytes, str]] = {
    "a path that there is not": (call_frames("/nvstream.v1.Inference/Nothing", RIGHT), "12"),
    "no path": (call_frames("", RIGHT), "12"),
    "a path of odd bytes": (call_frames("/\u202e/\u00e9", RIGHT), "12"),
    "another method": (call_frames(TOKENIZE, RIGHT, fields=[(":method", "GET"), *request_fields(TOKENIZE)[1:]]), RESET),
    "no message": (call_frames(TOKENIZE, b""), "3"),
    "less of a prefix": (call_frames(TOKENIZE, b"\0\0\0"), "3"),
    "less than is announced": (call_frames(TOKENIZE, message(tokenize(), length=1000)), "3"),
    "more than is announced": (call_frames(TOKENIZE, message(tokenize(), length=2)), "3"),
    "4 GiB announced": (call_frames(TOKENIZE, message(tokenize(), length=(1 << 32) - 1)), "8"),
    "more than the window has room for": (call_frames(TOKENIZE, message(bytes(17 * MIB))), RESET),
    "a flag of no meaning": (call_frames(TOKENIZE, message(tokenize(), compressed=7)), "3"),
    "compressed, by no word how": (call_frames(TOKENIZE, message(gzip.compress(tokenize()), compressed=1)), "13"),
    "compressed, and it is not": (call_frames(TOKENIZE, message(tokenize(), compressed=1), fields=IN_GZIP), "13"),
    "a small message that becomes huge": (call_frames(TOKENIZE, message(BOMB, compressed=1), fields=IN_GZIP), "8"),
    "trailers of a client": (call_frames(TOKENIZE, message(b"\xff"), end=False)
                             + frame(HEADERS, END_HEADERS | END_STREAM, 1, packed([("grpc-status", "0")])), "3"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_is_wrong_ends_by_a_status_that_says_so(victim: Victim, what: str) -> None:
    connection, (sent, status) = victim.opened(), CALLS[what]
    connection.send(sent)
    found = connection.until_end_of(1)
    assert not any(each.kind == DATA and each.payload for each in found), "nothing is answered to what is wrong"
    if status == RESET:
        assert [each.kind for each in found if each.stream == 1] == [RST_STREAM]
    else:
        assert STATUS + bytes([len(status)]) + status.encode() in ending(found)


def test_a_second_message_is_not_read(victim: Victim) -> None:
    connection = victim.opened()
    connection.send(call_frames(TOKENIZE, message(tokenize()) + message(tokenize("on"))))
    answers = [each for each in connection.until_end_of(1) if each.kind == DATA and each.payload]
    assert len(answers) <= 1


def test_a_stream_that_is_never_given_a_window_takes_nothing_from_others(victim: Victim) -> None:
    """As many as one user may have at once, each with an answer that has no place to go."""
    connection = victim.opened(initial_window_size=0)
    request = inference.GenerateRequest(model=MODEL, token_ids=inference.TokenIds(ids=[5, 6, 7]))
    request.options.max_tokens = 50
    for stream in range(1, 41, 2):
        connection.send(call_frames(GENERATE, message(request.SerializeToString()), stream))
    victim.daemon.wait("the answers", lambda: victim.daemon.engine(MODEL).running == 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_connection_that_ends_within_a_message_leaves_nothing(victim: Victim, share: float) -> None:
    whole = call_frames(TOKENIZE, message(tokenize("the " * 50_000)))
    for _ in range(20):
        with Connection(victim.daemon.socket, SECONDS) as connection:
            connection.open()
            connection.send(whole[: 200 + int(len(whole) * share)])


def test_a_half_closed_connection_is_answered_or_ended(victim: Victim) -> None:
    connection = victim.opened()
    connection.send(call_frames(TOKENIZE, message(tokenize())))
    connection.end()
    assert connection.until_end_of(1) is not None


def test_a_great_many_calls_that_say_nothing_are_a_users_own_trouble(victim: Victim) -> None:
    """Each has its headers and never a message: the user's share of open calls is full, nobody else's."""
    connection = victim.opened()
    streams = range(1, 2 * (MOST_CALLS + 50), 2)
    connection.send(*(frame(HEADERS, END_HEADERS, stream, FIELDS) for stream in streams))
    refused = next(each for each in connection.frames() if each.kind == HEADERS)
    assert STATUS + b"\x018" in refused.payload
    connection.send(*(frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")) for stream in streams))
