"""What does a user do to the others, by accident or on purpose? Each runs in a process of that user (support.as_user).

Bounded in count and time: each ends when its work is done or when it is told to.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket as sockets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn

import grpc

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from nvstream.v1.inference_pb2_grpc import InferenceStub
from nvstream.v1.models_pb2_grpc import ModelsStub
from support.as_user import say_ready, wait_told
from support.dial import SECONDS, channel

# Takes seconds to compile and is refused for it: intersections of patterns are not counted by the compiler.
COSTLY_SCHEMA = {"allOf": [{"type": "string", "pattern": f".*{chr(97 + n)}.{{{n + 5}}}{chr(98 + n)}.*"}
                           for n in range(12)]}


def until_told(work: Callable[[], object], threads: int) -> int:
    """Does `work` over and over in some threads until the test says enough; how often that was."""
    enough = threading.Event()
    done = [0] * threads

    def turn(number: int) -> None:
        while not enough.is_set():
            try:
                work()
            except grpc.RpcError:
                # Refused: a hostile user tries again, but no faster than a person could write a loop for.
                enough.wait(0.01)
            done[number] += 1

    workers = [threading.Thread(target=turn, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    say_ready()
    wait_told()
    enough.set()
    return sum(done)


def burn(threads: int) -> int:
    """Plain load: as many processes that compute as there are `threads`."""
    children = []
    for _ in range(threads):
        pid = os.fork()
        if pid == 0:
            _burn(os.getppid())
        children.append(pid)
    say_ready()
    wait_told()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return threads


def _burn(parent: int) -> NoReturn:
    """Computes as long as the parent lives, or until it is killed."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and os.getppid() == parent:
        sum(range(10_000))
    os._exit(0)


def text_flood(socket: str, model: str, threads: int = 4, text: str = "é", times: int = 1 << 22) -> int:
    """Tokenize of a huge text, again and again."""
    request = inference.TokenizeRequest(model=model, text=text * times)
    with channel(socket) as opened:
        stub = InferenceStub(opened)
        return until_told(lambda: stub.Tokenize(request, timeout=SECONDS), threads)


def schema_flood(socket: str, model: str, threads: int = 4) -> int:
    """Requests under schemas that are refused, each another one."""
    numbers = iter(range(1 << 30))

    def once(stub: InferenceStub) -> None:
        schema = {**COSTLY_SCHEMA, "title": str(next(numbers))}
        options = inference.Options(max_tokens=1, json_schema=json.dumps(schema))
        list(stub.Generate(inference.GenerateRequest(model=model, text="x", options=options), timeout=SECONDS))

    with channel(socket) as opened:
        stub = InferenceStub(opened)
        return until_told(lambda: once(stub), threads)


def get_flood(socket: str, model: str, threads: int = 60) -> int:
    """Questions about a model that is not loaded."""
    with channel(socket) as opened:
        stub = ModelsStub(opened)
        return until_told(lambda: stub.Get(models.GetRequest(model=model), timeout=SECONDS), threads)


def place_flood(socket: str, model: str, streams: int, prompt: int, max_tokens: int = 100_000,
                logprobs: int | None = None, first: int = 3) -> int:
    """Many long requests, all of which stay open until the test says enough; how many were let in."""
    with channel(socket) as opened:
        stub = InferenceStub(opened)
        calls = []
        for number in range(streams):
            options = inference.Options(max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs,
                                        sampling=inference.Sampling(temperature=0))
            ids = [first + number, *([first] * (prompt - 1))]
            calls.append(stub.Generate(inference.GenerateRequest(
                model=model, token_ids=inference.TokenIds(ids=ids), options=options), timeout=SECONDS))
        with ThreadPoolExecutor(streams) as pool:
            let_in = sum(pool.map(_is_let_in, calls))
            say_ready()
            wait_told()
            for call in calls:
                call.cancel()
        return let_in


def _is_let_in(call: Iterator[inference.StreamEvent]) -> bool:
    try:
        next(call)
    except grpc.RpcError:
        return False
    return True


def large_calls(socket: str, model: str, calls: int, size: int) -> int:
    """Calls with messages as large as they may be, all at once; how many were answered."""
    request = inference.TokenizeRequest(model=model, text="a" * (size - 64))
    with channel(socket) as opened:
        stub = InferenceStub(opened)
        open_calls = [stub.Tokenize.future(request, timeout=SECONDS) for _ in range(calls)]
        return sum(call.exception() is None for call in open_calls)


def idle_connections(socket: str, connections: int) -> int:
    """Connections that say nothing, until the test says enough; how many were kept."""
    opened = []
    for _ in range(connections):
        end = sockets.socket(sockets.AF_UNIX)
        while True:
            try:
                end.connect(socket)
                break
            except BlockingIOError:
                # Its backlog is full: whoever accepts comes to it.
                select.select([], [], [], 0.01)
        opened.append(end)
    say_ready()
    wait_told()
    kept = 0
    for end in opened:
        try:
            # grpcio greets with its settings: what is refused ends instead.
            kept += bool(end.recv(64))
        except ConnectionResetError:
            continue
    return kept


def unread_streams(socket: str, model: str, streams: int, tokens: int, logprobs: int) -> int:
    """Streams that nobody reads, until the test says enough."""
    with channel(socket) as opened:
        stub = InferenceStub(opened)
        options = inference.Options(max_tokens=tokens, ignore_eos=True, logprobs=logprobs)
        calls = [stub.Generate(inference.GenerateRequest(model=model, text=f"{number} is", options=options),
                               timeout=SECONDS) for number in range(streams)]
        say_ready()
        wait_told()
        for call in calls:
            call.cancel()
    return len(calls)


def suspended_stream(socket: str, model: str) -> int:
    """A stream whose client is stopped once it has begun: the test sends SIGSTOP."""
    with channel(socket) as opened:
        options = inference.Options(max_tokens=100_000, ignore_eos=True)
        call = InferenceStub(opened).Generate(inference.GenerateRequest(model=model, text="Count:", options=options),
                                              timeout=SECONDS)
        next(call)
        say_ready()
        return sum(1 for _ in call)


def raw_call(opened: grpc.Channel, method: str, message: bytes, seconds: float) -> tuple[str, str, int]:
    """How a call ends that sends these bytes: status, text, and size of the metadata as RFC 9113 counts it."""
    call = opened.stream_stream(method, request_serializer=None, response_deserializer=None)(
        iter([message]), timeout=seconds)
    with suppress(grpc.RpcError):
        for _ in call:
            pass
    trailing = call.trailing_metadata() or ()
    return call.code().name, call.details() or "", sum(len(key) + len(value) + 32 for key, value in trailing)


def raw_calls(socket: str) -> int:
    """Makes the calls that lines of standard input ask for, and prints how each ends; how many those were."""
    done = 0
    with channel(socket) as opened:
        for line in sys.stdin:
            done += 1
            method, message, seconds = json.loads(line)
            sys.stdout.write(json.dumps(raw_call(opened, method, bytes.fromhex(message), seconds)) + "\n")
    return done
