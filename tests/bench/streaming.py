"""Does generating keep the drive as busy as reading alone does? Writes build/bench/streaming.json.

One run, one daemon, one file: the model is loaded twice, once wholly resident (its passes are the compute time) and
once under a budget that makes most of it stream. Rounds interleave the drive alone with the streamed model for one user
and for eight; every figure is a median over the rounds. Virtual drives allow bursts: the drive is read until its rate
holds still before anything counts. Where it never does, or with --cap, a ceiling below its slowest rate holds it still,
so that both sides of a ratio, and a prediction, meet the same drive; the table says so.

    python -m bench.streaming [--shape 1b] [--family llama] [--type F16] [--rounds 5] [--cap MB_PER_SECOND]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from bench.drive_cap import Idle, NoCap, capped
from bench.report import Bar, show, write
from nvdma.arena import Arena
from nvdma.bandwidth import SourceRange, measure
from nvdma.select import probe
from nvdma.types import Source
from nvstream.v1.models_pb2 import Placement
from nvstreamd import ggml
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import DEPTH
from nvstreamd.engine.measure import BLOCK
from nvstreamd.pieces import Kind
from nvstreamd.weights.packed.files import open_all
from support import random_gguf, shapes
from support.daemon import Daemon, running
from support.files import ROOT
from support.vocabularies import real_vocabulary

MIB = 1 << 20
MODELS = ROOT / "build/models"
USERS = 8
PASSES = 4
RAW_SECONDS = 2.0
STILL = 1.1
MOST_READINGS = 12
STEADY = 4
SAFE = 0.75
BARS = {
    "io_fraction_of_raw": Bar(0.90),
    "pass_over_bound": Bar(1.10, most=True),
    "eight_users_pass_over_one": Bar(1.25, most=True),
    "prediction_error": Bar(0.15, most=True),
}


@dataclass(slots=True)
class Samples:
    """Seconds of passes and bytes a second of the drive, one entry a round."""

    raw: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    eight: list[float] = field(default_factory=list)


def model_file(shape: str, family: str, kind: str) -> Path:
    """The generated model, made once."""
    path = MODELS / f"random-{family}-{shape}-{kind}.gguf"
    if not path.exists():
        MODELS.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".partial")
        options = random_gguf.Options(type=ggml.BY_NAME[kind], vocabulary=real_vocabulary())
        random_gguf.write(scratch, shapes.PRESETS[shape][family], options)
        os.sync()
        scratch.rename(path)
    return path


def raw_bandwidth(path: Path, backend: str) -> float:
    """Bytes a second of the backend alone over the model's layers, as the engine would read them."""
    with ExitStack() as stack:
        model = read_model(open_all([path], stack))
        sources = [Source(file.fd, file.path, file.size) for file in model.data]
        ranges = [SourceRange(e.file, e.offset, e.length) for s in model.manifest.segments
                  if s.key.kind is Kind.LAYER for e in s.extents]
        arena = stack.enter_context(Arena(BLOCK * DEPTH))
        chosen = probe([backend], sources, arena, DEPTH).backend
        stack.callback(chosen.close)
        return measure(chosen, sources, arena, BLOCK, DEPTH, seconds=RAW_SECONDS, ranges=ranges).bytes_per_second


def settle(path: Path) -> int | None:
    """Reads until three readings in a row agree: what a burst allowed is used up.

    Returns None, or, when they never do, a rate that the drive can hold: a part of its slowest.
    """
    readings: list[float] = []
    while len(readings) < MOST_READINGS:
        readings.append(raw_bandwidth(path, "uring"))
        if len(readings) >= STEADY and max(readings[-STEADY:]) < STILL * min(readings[-STEADY:]):
            return None
    Console().print(f"the drive's rate does not hold still: {[round(rate / 1e9, 2) for rate in readings]} GB/s")
    return int(min(readings) * SAFE)


def pass_seconds(daemon: Daemon, model: str, users: int) -> float:
    """The median of a decode pass while `users` streams run: their token intervals, from when all of them decode."""
    streams = [daemon.open(model, [user + 1, 2, 3], max_tokens=PASSES + USERS, ignore_eos=True,
                           speculation=False)
               for user in range(users)]
    # Prompts arrive over one or two passes; each stream's first token says that it decodes.
    for stream in streams:
        while not next(stream).HasField("delta"):
            pass
    times = [time.perf_counter()]
    for event in streams[-1]:
        if event.HasField("delta"):
            times.append(time.perf_counter())
        if len(times) > PASSES:
            break
    for stream in streams:
        stream.cancel()
    daemon.wait("the slots to be free", lambda: daemon.engine(model).running == 0)
    return statistics.median(after - before for before, after in pairwise(times))


def run(path: Path, rounds: int, budget: int, directory: Path) -> tuple[Samples, Placement]:
    """All rounds, and what the engine itself expected of the streamed model."""
    offered = directory / "models"
    offered.mkdir()
    for name in ("resident", "streamed"):
        (offered / f"{name}.gguf").symlink_to(path)
    size = path.stat().st_size
    samples = Samples()
    with running(directory, "--memory", str(2 * size), "--model-directory", str(offered)) as daemon:
        backend = daemon.load("resident", size).placement.backend
        pass_seconds(daemon, "resident", 1)
        samples.resident = [pass_seconds(daemon, "resident", 1) for _ in range(rounds)]
        daemon.load("streamed", budget)
        pass_seconds(daemon, "streamed", 1)
        for _ in range(rounds):
            # Read-ahead goes on until its slots are full: the drive alone is the drive once that has ended.
            daemon.wait("the read-ahead to end", Idle(path))
            samples.raw.append(raw_bandwidth(path, backend))
            samples.eight.append(pass_seconds(daemon, "streamed", USERS))
            # Last, so that what the status expects at the end is of such passes.
            samples.one.append(pass_seconds(daemon, "streamed", 1))
        placement = daemon.engine("streamed").model.placement
    return samples, placement


def report(path: Path, samples: Samples, placement: Placement, drive: str) -> None:
    """Medians, ratios and the table; `drive` says whether a ceiling held it."""
    raw, resident, one, eight = (statistics.median(getattr(samples, name)) for name in Samples.__slots__)
    streamed = placement.streamed_bytes_per_pass
    io_seconds = streamed / raw
    ratios = {
        "io_fraction_of_raw": streamed / one / raw,
        "pass_over_bound": one / max(io_seconds, resident),
        "eight_users_pass_over_one": eight / one,
        "prediction_error": abs(placement.predicted_pass_seconds - one) / one,
    }
    plain = {
        "raw, GB/s": f"{raw / 1e9:.2f}",
        "while generating, GB/s": f"{streamed / one / 1e9:.2f}",
        "pass, one user, s": f"{one:.3f}",
        "pass, eight users, s": f"{eight:.3f}",
        "I/O alone, s": f"{io_seconds:.3f}",
        "compute alone (resident), s": f"{resident:.3f}",
        "predicted, s": f"{placement.predicted_pass_seconds:.3f}",
        "budget, MiB": f"{placement.budget / MIB:.0f} of {path.stat().st_size / MIB:.0f}",
        "bound by": "I/O" if io_seconds > resident else "compute: the I/O bars do not apply",
        "drive": drive,
        "path, kernel": f"{placement.backend}, {placement.kernel}",
    }
    show(f"streaming {path.stem}, medians of {len(samples.one)}", ratios, BARS, plain)
    write("streaming", {**ratios, "model": path.stem, "plain": plain, "rounds": {
        name: getattr(samples, name) for name in Samples.__slots__}})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.streaming", description=__doc__)
    parser.add_argument("--shape", choices=list(shapes.PRESETS), default="1b")
    parser.add_argument("--family", choices=["llama", "qwen3"], default="llama")
    parser.add_argument("--type", choices=sorted(ggml.BY_NAME), default="F16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-fraction", type=float, default=0.25, help="of the file's size")
    parser.add_argument("--cap", type=int, help="MB/s that the drive is held at; if not given, only when unsteady")
    chosen = parser.parse_args(arguments)
    path = model_file(chosen.shape, chosen.family, chosen.type)
    cap = chosen.cap * 10**6 if chosen.cap else settle(path)
    budget = int(path.stat().st_size * chosen.budget_fraction)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drive = hold(path, cap, stack)
        report(path, *run(path, chosen.rounds, budget, scratch), drive)


def hold(path: Path, cap: int | None, stack: ExitStack) -> str:
    """Puts the ceiling on the drive; what the table says about it."""
    if cap is None:
        return "as fast as it is"
    try:
        stack.enter_context(capped(path, cap))
    except NoCap as error:
        return f"not steady, and not held: {error}"
    return f"held at {cap / 1e9:.2f} GB/s by a cgroup"


if __name__ == "__main__":
    main()
