"""What does a long prompt cost, itself and the others, while half of the weights stream?

`streamed_prefill_over_bound`: its time over the larger of computing it resident and reading the fewest bytes it needs.
`streamed_prefill_over_before`: chunks of 64 tokens over ours, from a drive that a cgroup holds so that the reads of one
pass take six times as long as 64 tokens. `others_gap_over_pass`: the median gap between tokens of eight users while a
long prompt is computed, over the same without it; resident, where nothing is free.
"""

from __future__ import annotations

import random
import statistics
import time
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from threading import Thread

from bench.drive_cap import NoCap, capped
from bench.report import Bar
from bench.serving import FIRST_PLAIN, MODEL, STREAM_SECONDS, serve
from nvstream.v1.inference_pb2 import TIER_NVME
from support.daemon import Daemon
from support.files import SMOLLM2

MIB = 1 << 20
TOKENS, KV, USERS, CHUNK = 4096, 256 * MIB, 8, 64
READS_OVER_CHUNK = 6.0
KEYS = {"streamed_prefill_over_bound": Bar(1.25, most=True), "streamed_prefill_over_before": Bar(4.0),
        "others_gap_over_pass": Bar(1.5, most=True)}


def prompt_of(draw: random.Random) -> list[int]:
    """Tokens that no cache knows."""
    return [draw.randrange(FIRST_PLAIN, FIRST_PLAIN + 10_000) for _ in range(TOKENS)]


def prefill(daemon: Daemon, draw: random.Random) -> tuple[float, float]:
    """Seconds from the request to its only token, and the bytes that a pass streamed for it."""
    start = time.perf_counter()
    answer = daemon.generate(MODEL, prompt_of(draw), STREAM_SECONDS, max_tokens=1, ignore_eos=True)
    seconds = time.perf_counter() - start
    assert answer.finished is not None and answer.finished.usage.cached_tokens == 0
    usage = answer.finished.usage
    return seconds, sum(tier.bytes for tier in usage.bytes if tier.tier == TIER_NVME) / usage.weight_passes


def daemon_of(stack: ExitStack, threads: int, config: str = "") -> Daemon:
    """A daemon with room for all of this."""
    size = SMOLLM2.stat().st_size
    return serve(SMOLLM2, stack, ["--threads", str(threads), "--memory", str(2 * size + 2 * KV)], config)


def median_prefill(threads: int, rounds: int, budget: int, config: str = "", cap: int | None = None
                   ) -> tuple[float, float, float]:
    """Median seconds of the prompt under a budget; bytes that its passes stream, the drive's rate as status has it."""
    draw = random.Random(7)
    with ExitStack() as stack, capped(SMOLLM2, cap) if cap else nullcontext():
        daemon = daemon_of(stack, threads, config)
        daemon.load(MODEL, budget, kv_budget=KV)
        prefill(daemon, draw)
        seconds, nbytes = zip(*(prefill(daemon, draw) for _ in range(rounds)), strict=True)
        rate = daemon.engine(MODEL).model.placement.read_bytes_per_second
        # The daemon ends inside the group that it was started in.
        stack.close()
    return statistics.median(seconds), statistics.median(nbytes), rate


def gaps(daemon: Daemon, draw: random.Random, *, beside: bool) -> float:
    """The median gap between tokens of eight users, while a long prompt is computed or not."""
    streams = [daemon.open(MODEL, [user + 1, 2, 3], STREAM_SECONDS, max_tokens=400, ignore_eos=True,
                           speculation=False) for user in range(USERS)]
    for stream in streams:
        while not next(stream).HasField("delta"):
            pass
    prompt = Thread(target=prefill, args=(daemon, draw)) if beside else None
    times: list[float] = []

    def read() -> None:
        for event in streams[0]:
            if event.HasField("delta"):
                times.append(time.perf_counter())

    reader = Thread(target=read)
    reader.start()
    begin = time.perf_counter()
    if prompt is not None:
        prompt.start()
        prompt.join()
    end = time.perf_counter()
    for stream in streams[1:]:
        for _ in stream:
            pass
    reader.join()
    counted = [at for at in times if begin <= at <= end] if beside else times
    return statistics.median(after - before for before, after in pairwise(counted))


def measure(threads: int, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """{key: ratio}, and lines with the figures."""
    size = SMOLLM2.stat().st_size
    resident, _, _ = median_prefill(threads, rounds, size)
    streamed, nbytes, rate = median_prefill(threads, rounds, size // 2)
    ratios = {"streamed_prefill_over_bound": streamed / max(resident, nbytes / rate)}
    plain = {"prompt of 4096, s": f"resident {resident:.2f}, half streamed {streamed:.2f}"}
    # 64 tokens multiply in a 64th of the resident prompt; the cap makes a pass's reads six times that.
    cap = int(nbytes / (READS_OVER_CHUNK * resident / (TOKENS / CHUNK)))
    try:
        before, _, _ = median_prefill(threads, 1, size // 2, f"prefill_chunk = {CHUNK}\n", cap)
        ours, _, _ = median_prefill(threads, 1, size // 2, cap=cap)
        ratios["streamed_prefill_over_before"] = before / ours
        plain["drive held at, MB/s"] = f"{cap / 1e6:.0f}: chunks of 64 took {before:.2f} s, ours {ours:.2f}"
    except NoCap as error:
        plain["not measured: streamed_prefill_over_before"] = str(error)
    draw = random.Random(9)
    with ExitStack() as stack:
        daemon = daemon_of(stack, threads, "max_running = 16\n")
        daemon.load(MODEL, size, kv_budget=KV)
        gaps(daemon, draw, beside=False)
        pairs = [(gaps(daemon, draw, beside=True), gaps(daemon, draw, beside=False)) for _ in range(rounds)]
        beside, alone = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios["others_gap_over_pass"] = beside / alone
    plain["gap of eight users, ms"] = f"{alone * 1e3:.1f}, beside a long prompt {beside * 1e3:.1f}"
    return ratios, plain
