"""Does a client that leaves at any moment leave anything behind: a share, a place, a request, a job, a page?"""

from __future__ import annotations

import random
from collections.abc import Iterator

import grpc
import pytest

from hostile.faulty import FIND
from nvstream.v1 import inference_pb2 as inference
from support.daemon import Daemon, generate_request
from support.random_gguf import write
from support.sabotage import Sabotaged, sabotaged
from support.shapes import tiny

TIMES = 100
SETTLE_SECONDS = 10.0
MIB = 1 << 20
SCHEMA = '{"type": "array", "items": {"enum": ["the", "he", "on"]}}'
LEFT = FIND + """
preparer, intake = loop.preparer, loop.intake
assert not preparer._open and not preparer._workers and not intake.requests and not intake.announcer.places
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sabotaged]:
    directory = tmp_path_factory.mktemp("leaving")
    write(directory / "m.gguf", tiny())
    with sabotaged(directory, "--memory", "64MiB", "--model-directory", str(directory)) as made:
        made.daemon.load("m", 16 * MIB, kv_budget=4 * MIB)
        yield made


def leave_one(daemon: Daemon, dice: random.Random) -> None:
    """Begins a call and leaves it: by its deadline, at once, or after some of its answer."""
    seconds = dice.choice([dice.uniform(0.0001, 0.05), 20.0])
    if dice.random() < 0.5:
        text = "the he " * dice.choice([1, 100, 20_000])
        call = daemon.inference.Tokenize.future(inference.TokenizeRequest(model="m", text=text), timeout=seconds)
        if seconds > 1:
            call.cancel()
        else:
            call.exception()
        return
    prompt = dice.choice(["the he", "the " * 100, [5, 6, 7]])
    schema = {"json_schema": SCHEMA} if dice.random() < 0.3 else {}
    request = generate_request("m", prompt, max_tokens=300, ignore_eos=True, speculation=False, **schema)
    stream = daemon.inference.Generate(request, timeout=seconds)
    try:
        for number, _ in enumerate(stream):
            if number >= dice.choice([0, 1, 3, 10]):
                break
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED), error
    stream.cancel()


def test_calls_that_are_left_at_any_moment_leave_nothing(served: Sabotaged) -> None:
    daemon, dice = served.daemon, random.Random(1)
    before = daemon.generate("m", [5, 6, 7], max_tokens=8, ignore_eos=True, speculation=False).ids
    for _ in range(TIMES):
        leave_one(daemon, dice)

    def nothing_is_left() -> bool:
        share, engine = daemon.status().shares[0], daemon.engine("m")
        # The call that asks is open itself.
        return ((share.open_calls, share.request_bytes, share.requests, share.running, share.queued) == (1, 0, 0, 0, 0)
                and (engine.running, engine.queued, engine.kv_pages_used) == (0, 0, 0))

    daemon.wait("all that they took to be given back", nothing_is_left)
    # An engine hears of those who left a moment after their shares are given back.
    daemon.wait("the engine to have nothing left", lambda: not served.tried(LEFT), SETTLE_SECONDS)
    assert daemon.generate("m", [5, 6, 7], max_tokens=8, ignore_eos=True, speculation=False).ids == before
    assert daemon.engine("m").restarts == 0
