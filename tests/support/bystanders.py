"""What do users see who do no harm, while others do? Each runs in a process of that user (support.as_user)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import grpc

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1.inference_pb2_grpc import InferenceStub
from nvstream.v1.status_pb2 import GetStatusRequest
from nvstream.v1.status_pb2_grpc import StatusStub
from support.as_user import say_ready, wait_told
from support.dial import SECONDS, channel


def tokens_had(socket: str, model: str, streams: int, tokens: int, seconds: float) -> int:
    """Tokens that a user who always has `streams` requests open gets in that time, from when the test says so.

    Nothing is guessed: who has had more texts has more to guess from, and a second of a pass gives them more tokens.
    """
    say_ready()
    wait_told()
    end = time.monotonic() + seconds
    had = [0] * streams

    def one(number: int) -> None:
        with channel(socket) as opened:
            stub = InferenceStub(opened)
            options = inference.Options(max_tokens=tokens, ignore_eos=True, speculation=False,
                                        sampling=inference.Sampling(temperature=0))
            while (left := end - time.monotonic()) > 0:
                call = stub.Generate(inference.GenerateRequest(model=model, text=f"{number} is", options=options),
                                     timeout=left)
                try:
                    for event in call:
                        had[number] += len(event.delta.token_ids)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                        raise

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(one, range(streams)))
    return sum(had)


def short_request(socket: str, model: str, prompt: str = "The capital of France is", tokens: int = 1,
                  times: int = 1) -> list[dict[str, object]]:
    """Short requests, one after the other: seconds and passes to the first token, ids, and the error if there was one.

    Of passes the daemon hears a few times a second at least, and whenever one ends after that.
    """
    results = []
    with channel(socket) as opened:
        stub, status = InferenceStub(opened), StatusStub(opened)

        def passes() -> int:
            engines = status.GetStatus(GetStatusRequest(), timeout=SECONDS).engines
            return next(engine.passes for engine in engines if engine.model.name == model)

        for _ in range(times):
            options = inference.Options(max_tokens=tokens, ignore_eos=True, sampling=inference.Sampling(temperature=0))
            request = inference.GenerateRequest(model=model, text=prompt, options=options)
            before, start = passes(), time.monotonic()
            first, taken, ids, problem = None, 0, [], ""
            try:
                for event in stub.Generate(request, timeout=SECONDS):
                    if event.HasField("delta"):
                        if first is None:
                            first, taken = time.monotonic() - start, passes() - before
                        ids += event.delta.token_ids
            except grpc.RpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            results.append({"first": first, "passes": taken, "ids": ids, "error": problem})
    return results


def shares_seen(socket: str) -> list[int]:
    """Whose shares a user sees."""
    with channel(socket) as opened:
        return [share.uid for share in StatusStub(opened).GetStatus(GetStatusRequest(), timeout=SECONDS).shares]


def stream_gaps(socket: str, model: str, tokens: int, prompt: str = "Count: 1 2 3") -> list[float]:
    """Seconds between the tokens of one stream."""
    with channel(socket) as opened:
        options = inference.Options(max_tokens=tokens, ignore_eos=True, sampling=inference.Sampling(temperature=0))
        call = InferenceStub(opened).Generate(inference.GenerateRequest(model=model, text=prompt, options=options),
                                              timeout=SECONDS)
        say_ready()
        times = [time.monotonic() for event in call if event.HasField("delta")]
    return [after - before for before, after in pairwise(times)]
