"""What can an engine say that was taken over? Nothing that costs the daemon more than that engine, or that stream."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from hostile.faulty import FIND, PROMPT, await_another, code_and_text, ids_of
from support.daemon import Collected
from support.sabotage import Sabotaged

pytestmark = pytest.mark.usefixtures("all_is_well_afterwards")

# What an engine may say that was taken over. `the` is the id of a stream that is open.
PREAMBLE = FIND + """
import os, signal, struct
from nvstream.v1 import inference_pb2 as public, models_pb2 as models
from nvstreamd.wire.engine_pb2 import *
from nvstreamd.wire.frames import frame
the = next(iter(loop.intake.requests))
def say(data):
    with channel._sending:
        socket.sendall(data)
def report(**kind):
    say(frame(FromEngine(**kind).SerializeToString()))
"""
NONSENSE = {
    "no message": r"say(b'\0\0\0\4\xff\xff\xff\xff')",
    "an empty message": r"say(bytes(4))",
    "a message of 4 GiB": r"say(b'\xff\xff\xff\xff')",
    "loaded again": "report(loaded=Loaded())",
    "a description": "report(described=Described())",
    "progress of an import": "report(pack_progress=PackProgress())",
    "a wait that is no number": "report(queued=Queued(id=the, position=1, eta_seconds=float('nan')))",
    "an endless wait": "report(queued=Queued(id=the, position=1, eta_seconds=1e300))",
    "a pass since ever": "report(beat=Beat(pass_seconds=float('inf')))",
    "a pass expected in no time": "report(stats=Stats(predicted_pass_seconds=float('nan')))",
    "a drive of no rate": "report(stats=Stats(read_bytes_per_second=float('nan')))",
    "a pass before it began": "report(stats=Stats(pass_seconds=-1.0))",
    "ids of a text for a stream": "report(encoded=Encoded(id=the))",
    "a failure of everything": "report(failure=Failure(status='NO_SUCH', message='x' * 100_000))",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_engine_that_talks_nonsense_is_replaced_and_streams_go_on(served: Sabotaged, what: str) -> None:
    """It was a model FAILED for good, for everybody, until an administrator came."""
    daemon, before = served.daemon, served.daemon.engine("m")
    longer = ids_of(daemon, 400)
    stream, collected = daemon.open("m", PROMPT, max_tokens=400, ignore_eos=True, speculation=False), Collected()
    collected.take(next(stream))
    served.lay(PREAMBLE + NONSENSE[what])
    for event in stream:
        collected.take(event)
    assert collected.ids == longer
    await_another(daemon, before)


OF_THE_STREAM: dict[str, tuple[str, Callable[[Collected], bool]]] = {
    "a failure that there is not": (
        "report(failure=Failure(id=the, status='NO_SUCH', message='y' * 100_000, hint='z' * 100_000))",
        lambda found: code_and_text(found.error)[0] == grpc.StatusCode.INTERNAL
        and len(code_and_text(found.error)[1]) < 1300),
    "a failure of nobody": ("report(failure=Failure(id=1 << 60, status='NONE'))", lambda found: bool(found.finished)),
    "tokens of nobody": ("report(tokens=Tokens(id=1 << 60))", lambda found: bool(found.finished)),
    "the end of nobody": ("report(ended=Ended(id=1 << 60))", lambda found: bool(found.finished)),
    "ids of nobody": ("report(encoded=Encoded(id=1 << 60))", lambda found: bool(found.finished)),
    "more than anybody reads at once": (
        "report(tokens=Tokens(id=the, delta=public.Delta(text='x' * (1 << 20))))",
        # It is behind something unread or not, as it happens.
        lambda found: found.error is None or code_and_text(found.error)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("what", OF_THE_STREAM)
def test_what_an_engine_says_of_one_stream_harms_no_other(served: Sabotaged, what: str) -> None:
    daemon, pid = served.daemon, served.daemon.engine("m").pid
    said, holds = OF_THE_STREAM[what]
    stream, found = daemon.open("m", PROMPT, max_tokens=400, ignore_eos=True, speculation=False), Collected()
    found.take(next(stream))
    served.run(PREAMBLE + said)
    try:
        for event in stream:
            found.take(event)
    except grpc.RpcError as error:
        found.error = error
    assert holds(found), found.error
    assert daemon.engine("m").pid == pid


@pytest.mark.slow
def test_an_engine_that_closes_its_channel_and_stays_is_ended(served: Sabotaged) -> None:
    daemon, before = served.daemon, served.daemon.engine("m")
    served.lay("""
        import os, signal
        from socket import SHUT_WR
        with channel._sending:
            socket.shutdown(SHUT_WR)
            os.kill(os.getpid(), signal.SIGSTOP)
        """)
    assert daemon.generate("m", PROMPT, max_tokens=2).ids
    await_another(daemon, before)
    assert "closed its channel" in daemon.log.read_text()
