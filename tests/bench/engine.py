"""Does the engine compute as fast as llama.cpp, and faster when memory is short? Writes build/bench/engine.json.

Both sides hold the same file with the same number of threads, and take turns: a round of ours, a round of theirs. Ours
goes through the real daemon and the real gRPC client. Every ratio is ours over theirs in tokens a second, of medians
over the rounds. Memory is that of daemon and engine after a wide pass, but for weights and KV cache. What is measured
of ours alone is in bench.prediction, bench.prompts and bench.speculation; nothing is guessed beside llama.cpp.

Where memory is short, daemon and engine together live in a memory cgroup of half the model, the KV budget and 200 MiB,
and llama.cpp in another as large, with the file mapped; the weights' budget of ours is half the model. A side that
fails says so in the table: ours then has the rate 0, without theirs there is no ratio. A round in which other programs
computed is taken again, a few times; what was not quiet in the end is named in the table and worth little.

    python -m bench.engine [--rounds 5] [--threads N] [--only KEY...]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

from bench import peers, prediction, prompts, speculation
from bench.company import QUIET, Company
from bench.memory_group import MemoryGroup, NoMemoryGroups, drop_cached, memory_group
from bench.report import Bar, show, write
from bench.serving import MODEL, decode_rate, memory_besides, prefill_rate, serve
from bench.streaming import model_file
from support.daemon import Daemon
from support.files import GEMMA3, SMOLLM2

MIB = 1 << 20
EXTRA = 200 * MIB
SHORT_KV = 64 * MIB
USERS = 8
PREFILL = 512


@dataclass(frozen=True, slots=True)
class Setting:
    """A model, and whether memory is short."""

    model: str
    short: bool = False

    def path(self) -> Path:
        """Its file, made when it is a generated one."""
        real = {"smollm2": SMOLLM2, "gemma3": GEMMA3}
        return real[self.model] if self.model in real else model_file("1b", "llama", self.model)

    def __str__(self) -> str:
        return f"{self.model}, memory short" if self.short else self.model


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of both sides: decode `tokens` for each of `users`, or prefill them (no users)."""

    setting: Setting
    bar: float
    tokens: int
    users: int = 1

    @property
    def command(self) -> str:
        """The case as llama.cpp is asked it."""
        return f"decode {self.users} {self.tokens}" if self.users else f"prefill {self.tokens}"

    def ours(self, daemon: Daemon, draw: random.Random) -> float:
        """The case as our daemon is asked it: tokens a second."""
        return decode_rate(daemon, self.users, self.tokens) if self.users else prefill_rate(daemon, self.tokens, draw)


SMALL, GEMMA, Q4_0, Q8_0 = Setting("smollm2"), Setting("gemma3"), Setting("Q4_0"), Setting("Q8_0")
SHORT = Setting("Q4_0", short=True)
CASES = {
    "smollm2_decode_ratio": Case(SMALL, 1.0, 128),
    "smollm2_prefill_ratio": Case(SMALL, 1.0, PREFILL, users=0),
    "gemma3_decode_ratio": Case(GEMMA, 1.0, 64),
    "gemma3_prefill_ratio": Case(GEMMA, 1.0, PREFILL, users=0),
    "shape1b_q4_0_decode_ratio": Case(Q4_0, 1.0, 32),
    "shape1b_q4_0_prefill_ratio": Case(Q4_0, 1.0, PREFILL, users=0),
    "shape1b_q4_0_eight_users_ratio": Case(Q4_0, 1.2, 24, USERS),
    "shape1b_q8_0_decode_ratio": Case(Q8_0, 1.0, 32),
    "vs_llamacpp_memory_limited": Case(SHORT, 1.6, 24),
    "eight_users_vs_llamacpp_memory_limited": Case(SHORT, 1.6, 24, USERS),
}
MEMORY = {SMALL: "smollm2_memory_mb", Q4_0: "shape1b_q4_0_memory_mb", Q8_0: "shape1b_q8_0_memory_mb"}
BARS = ({key: Bar(case.bar) for key, case in CASES.items()} | {key: Bar(200, most=True) for key in MEMORY.values()}
        | {key: Bar(0.15, most=True) for key in prediction.KEYS} | prompts.KEYS | speculation.KEYS)
# What is measured apart, without llama.cpp.
APART = ("prediction_error", "prompts", "speculation")


@dataclass(slots=True)
class Samples:
    """Tokens a second and the share of the processors that others had, one entry a round; rounds thrown away."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    retaken: int = 0

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


@dataclass(slots=True)
class Results:
    """What was measured, and lines on how."""

    samples: dict[str, Samples] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Ours:
    """Our daemon. Once a call of it has failed its rate is 0, and `failure` says why."""

    daemon: Daemon
    failure: str = ""

    def rate(self, call: Callable[[Daemon], float]) -> float:
        """What the call measures."""
        if self.failure:
            return 0.0
        try:
            return call(self.daemon)
        except grpc.RpcError as error:
            self.failure = str(error.details())
            return 0.0


def groups(setting: Setting, size: int, stack: ExitStack) -> list[MemoryGroup | None]:
    """Where memory is short a group for ours and one for theirs, otherwise none."""
    if not setting.short:
        return [None, None]
    return [stack.enter_context(memory_group(side, size // 2 + SHORT_KV + EXTRA)) for side in ("ours", "theirs")]


def inside(group: MemoryGroup | None) -> AbstractContextManager[None]:
    """Where a side is started."""
    return group.entered() if group else nullcontext()


def load(daemon: Daemon, setting: Setting, size: int) -> float:
    """Brings the model into service, all of it resident or half of it streaming; the bytes that stream."""
    if setting.short:
        streamed = daemon.load(MODEL, size // 2, kv_budget=SHORT_KV).placement.streamed_bytes_per_pass
    else:
        streamed = daemon.load(MODEL, size).placement.streamed_bytes_per_pass
    assert setting.short == (streamed > 0), f"{setting}: {streamed} bytes stream"
    return float(streamed)


def memory(daemon: Daemon, draw: random.Random) -> float:
    """MB that a prompt of the widest pass leaves in use beside weights and KV cache."""
    prefill_rate(daemon, PREFILL, draw)
    return memory_besides(daemon, PREFILL) / 1e6


def take_turns(case: Case, ours: Ours, peer: peers.Peer, rounds: int, draw: random.Random) -> Samples:
    """Both sides once to warm up, then a round of each; what others disturbed again, at most `rounds` times."""
    def one_round() -> tuple[float, float]:
        return ours.rate(lambda daemon: case.ours(daemon, draw)), peer.rate(case.command)

    one_round()
    samples = Samples()
    while len(samples.ours) < rounds:
        company = Company()
        mine, theirs = one_round()
        share = company.share()
        if share > QUIET and samples.retaken < rounds:
            samples.retaken += 1
            continue
        samples.ours.append(mine)
        samples.theirs.append(theirs)
        samples.others.append(share)
    return samples


def notes(setting: Setting, ours: Ours, mine: MemoryGroup | None, their: MemoryGroup | None) -> dict[str, str]:
    """Lines on how a setting was measured, and on what failed."""
    lines = {f"ours failed: {setting}": ours.failure} if ours.failure else {}
    if not ours.failure:
        placement = ours.daemon.engine(MODEL).model.placement
        lines[f"path, kernel: {setting}"] = f"{placement.backend}, {placement.kernel}"
    for side, group in {"ours": mine, "llama.cpp": their}.items():
        if group:
            lines[f"memory of {side}, MiB"] = f"{group.most() / MIB:.0f} of {group.limit / MIB:.0f}"
            lines[f"killed for memory: {side}"] = str(group.kills())
    return lines


def measure(setting: Setting, keys: Sequence[str], rounds: int, threads: int, results: Results) -> None:
    """All rounds of the cases of one setting."""
    path, draw = setting.path(), random.Random(1)
    size = path.stat().st_size
    with ExitStack() as stack:
        mine, their = groups(setting, size, stack)
        if setting.short:
            drop_cached(path)
        with inside(mine):
            ours = Ours(serve(path, stack, ["--threads", str(threads)]))
        ours.rate(lambda daemon: load(daemon, setting, size))
        if setting in MEMORY and not ours.failure:
            results.memory[MEMORY[setting]] = memory(ours.daemon, draw)
        with inside(their):
            peer = stack.enter_context(peers.peer(path, threads, mapped=setting.short))
        for key in keys:
            results.samples[key] = take_turns(CASES[key], ours, peer, rounds, draw)
        results.plain |= notes(setting, ours, mine, their)


def report(results: Results, rounds: int, threads: int) -> None:
    """Medians, ratios and the table."""
    ratios = {key: samples.ratio for key, samples in results.samples.items()} | results.memory | results.apart
    rates = {
        f"{CASES[key].setting}: {CASES[key].command}, tokens/s": f"ours {statistics.median(samples.ours):.1f}, "
        f"llama.cpp {statistics.median(samples.theirs):.1f}"
        for key, samples in results.samples.items()
    }
    noisy = {
        f"NOT QUIET: {key}": f"others had up to {max(samples.others):.0%} of the processors"
        for key, samples in results.samples.items() if max(samples.others) > QUIET
    }
    retaken = str(sum(samples.retaken for samples in results.samples.values()))
    plain = {**rates, **noisy, "rounds taken again": retaken, "measured against": peers.name(),
             "threads": str(threads), **results.plain}
    show(f"engine beside llama.cpp, medians of {rounds}", ratios, BARS, plain)
    write("engine", {**ratios, "plain": plain, "rounds": {
        key: asdict(samples) for key, samples in results.samples.items()}})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=[*CASES, *APART], metavar="KEY", default=[*CASES, *APART])
    chosen = parser.parse_args(arguments)
    results = Results()
    for setting in (SMALL, GEMMA, Q4_0, Q8_0, SHORT):
        keys = [key for key in CASES if key in chosen.only and CASES[key].setting == setting]
        if not keys:
            continue
        try:
            measure(setting, keys, chosen.rounds, chosen.threads, results)
        except (NoMemoryGroups, peers.PeerError) as error:
            results.plain[f"not measured: {setting}"] = str(error)
    others = {"prediction_error": lambda: prediction.prediction_errors(chosen.threads),
              "prompts": lambda: prompts.measure(chosen.threads, chosen.rounds),
              "speculation": lambda: speculation.measure(chosen.threads, chosen.rounds)}
    for name in (name for name in APART if name in chosen.only):
        found, lines = others[name]()
        results.apart |= found
        results.plain |= lines
    report(results, chosen.rounds, chosen.threads)


if __name__ == "__main__":
    main()
