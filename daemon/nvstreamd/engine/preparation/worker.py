"""What does a worker do? It answers questions that users size, one at a time, within limits that the kernel keeps.

It is a fork of the engine from before that had weights, threads or drives, so it has the tokenizer and little else.
Whatever becomes of it is one call's failure.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nvstream.v1.inference_pb2 import TokenizeResponse
from nvstreamd.engine.walls import go_first, make_no_more_sockets
from nvstreamd.errors import InvalidRequest, NvstreamError, unexpected
from nvstreamd.wire.engine_pb2 import Encode, Encoded, FromEngine, Prepare
from nvstreamd.wire.failures import failure_of
from nvstreamd.wire.frames import HEADER, frame, length_of

if TYPE_CHECKING:
    from nvstreamd.engine.encoder import Encoder

# Above what a worker has at its start. Some two million tokens take as much while they are made.
MEMORY: Final = 640 << 20
CPU_SECONDS: Final = 30
NICE: Final = 10
# Clients take messages of 4 MiB by default, in every language (grpc.max_receive_message_length).
LARGEST_ANSWER: Final = (4 << 20) - (16 << 10)


def work(channel: socket.socket, encoder: Encoder, costly: bool) -> None:
    """Answers Prepare with Encoded or Failure until the engine closes the channel; what is `costly` steps back."""
    _confine(NICE if costly else 0)
    with ExitStack() as stack:
        encoder.open(stack)
        while (ask := _receive(channel)) is not None:
            _allow_cpu()
            channel.sendall(frame(answer(ask, encoder).SerializeToString()))


def answer(ask: Prepare, encoder: Encoder) -> FromEngine:
    """Encoded, or the Failure of whatever went wrong."""
    try:
        if ask.HasField("json_schema"):
            return FromEngine(encoded=_checked(ask.json_schema, encoder))
        return FromEngine(encoded=_encoded(ask.encode, encoder))
    except Exception as error:
        return FromEngine(failure=failure_of(unexpected(error, "preparing the request")))


def _encoded(text: Encode, encoder: Encoder) -> Encoded:
    if text.HasField("chat"):
        ids = encoder.chat([{"role": message.role, "content": message.content} for message in text.chat.messages])
    else:
        ids = encoder.text(text.text, text.add_special)
    encoded = Encoded(response=TokenizeResponse(token_ids=ids))
    if encoded.ByteSize() > LARGEST_ANSWER:
        raise InvalidRequest(f"the text has {len(ids)} tokens: their ids are more than {LARGEST_ANSWER} bytes",
                             "send it in parts", field="text")
    return encoded


def _checked(schema: str, encoder: Encoder) -> Encoded:
    began = time.monotonic()
    return Encoded(schema=encoder.check_schema(schema), compile_seconds=time.monotonic() - began)


def _confine(nice: int) -> None:
    """Sets the limits that hold for the whole life of the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    # The hard limit stays: the processes in which templates are rendered and schemas compiled have limits of their own.
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(PermissionError):
        # The service's filter denies it: workers then compete with the engine's threads as equals.
        os.nice(nice)
    go_first()
    # Where that cannot be, the engine has the same wall less, and says so.
    make_no_more_sockets()


def _allow_cpu() -> None:
    """Lets the next question take `CPU_SECONDS` more; beyond them the kernel ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1, hard))


def _receive(channel: socket.socket) -> Prepare | None:
    header = receive_exactly(channel, HEADER.size)
    body = None if header is None else receive_exactly(channel, length_of(header))
    return None if body is None else Prepare.FromString(body)


def receive_exactly(channel: socket.socket, count: int) -> bytes | None:
    """`count` bytes, None when the other end is closed. Raises TimeoutError by the socket's own timeout."""
    data = bytearray()
    while len(data) < count:
        try:
            part = channel.recv(min(count - len(data), 1 << 20))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def refusal(how: str) -> NvstreamError:
    """The failure of a call whose worker ended."""
    error = NvstreamError(f"the request takes too much to prepare: its worker {how}", "send it in parts",
                          field="prompt")
    error.status = "INVALID_ARGUMENT"
    return error
