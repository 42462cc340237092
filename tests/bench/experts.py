"""Does a mixture of experts run as fast as in llama.cpp, and faster from a drive? Writes build/bench/experts.json.

A random file of Qwen3-30B-A3B's shape with fewer layers. Its routes follow three laws that are in its weights
(support.moe_gguf), so that both sides have the same: uniform, Zipf(1), and Zipf(1) whose hot set changes with the topic
every 200 tokens. The bars count on the last; the others are shown. No real router was seen.

Both sides are processes that get the same token ids, in turns, with the same number of threads. `_memory_limited`: each
in a cgroup of half the file, the KV cache and 200 MiB, cold: a process of its own each round, of whose file nothing was
cached before. A first token, which brings in what all tokens need, is not timed. There llama.cpp decodes the first 24
tokens of the 300 that ours does: it took a second for each (0.91 tokens/s over 10, 0.79 over 40, measured once).

`drive_fraction_of_raw`: of decode passes that waited for more than half of their time, bytes read over the seconds in
which reads were in flight, over what the drive gives alone: our backend with O_DIRECT in the same process and cgroup,
over the same file, right after, the drive being held at a rate at which misses bound most passes.
`four_users_over_one`: tokens a second of all, ours with memory short, each user with topics of their own.
`hit_rate_over_best`: our hits over those of Belady's cache on the same routes, both cold.

    python -m bench.experts [--rounds 3] [--threads N] [--layers 8] [--only KEY...] [--cap MB_PER_SECOND]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from bench import peers
from bench.company import QUIET
from bench.experts_cache import Cached
from bench.experts_sides import MIB, OURS, RESIDENT_KV, Asked, Bench, Samples, ask, rounds_of
from bench.memory_group import MemoryGroup, NoMemoryGroups
from bench.peers import PeerError
from bench.report import HOME, Bar, show, write
from bench.streaming import hold
from support.moe_gguf import STRETCH, Law, bench_model, tokens
from support.shapes import SHAPE_30B_A3B
from support.vocabularies import real_vocabulary

WHOLE = 1.05  # experts that lie in a file are read by whole blocks, which is a little more than it has
USERS = (1, 4, 8)
USER_STEPS = 160
PREFILL = 512
JUDGED = Law.DRIFT


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides are asked, with so many tokens: a command of llamacpp_peer.cpp. `name` is for the table.

    llama.cpp gets the first `theirs` of them, all where that is 0: with memory short its rate is the same at once.
    """

    name: str
    bar: float
    goal: float
    command: str
    tokens: int
    short: bool = False
    theirs: int = 0


CASES = {
    "moe_decode_ratio": Case("decode", 1.0, 1.2, "forced", 129),
    "moe_prefill_ratio": Case("prefill", 1.0, 2.0, "forced_prefill", PREFILL),
    "moe_vs_llamacpp_memory_limited": Case("decode, short", 1.6, 3.0, "forced", 301, short=True, theirs=25),
    "moe_prefill_vs_llamacpp_memory_limited": Case("prefill, short", 3.0, 3.0, "forced_prefill", PREFILL, short=True),
}
LIMITED = "moe_vs_llamacpp_memory_limited"
# Measured with another: what was decoded with memory short.
WITH = {"hit_rate_over_best": LIMITED}
DRIVE = "drive_fraction_of_raw"
# Bytes a second that the drive is held at, so that misses bound nearly every pass, and the tokens of that.
HELD, HELD_TOKENS = 300 * 10**6, 101
USERS_KEYS = {"four_users_over_one": 4, "eight_users_over_one": 8}
BARS = {key: Bar(case.bar) for key, case in CASES.items()} | {
    DRIVE: Bar(0.85), "hit_rate_over_best": Bar(0.85),
    "four_users_over_one": Bar(1.3), "eight_users_over_one": Bar(1.6)}


@dataclass(slots=True)
class Results:
    """What was measured, by key and law, and lines on how."""

    samples: dict[str, dict[str, Samples]] = field(default_factory=dict)
    cached: dict[str, Cached] = field(default_factory=dict)
    users: dict[int, list[float]] = field(default_factory=dict)
    held: Cached = field(default_factory=Cached)
    failed: set[str] = field(default_factory=set)
    plain: dict[str, str] = field(default_factory=dict)

    def ratios(self, law: str) -> dict[str, float]:
        """The figures of a law; where ours failed 0."""
        found = {key: by_law[law].ratio for key, by_law in self.samples.items() if law in by_law}
        if law in self.cached:
            found |= self.cached[law].ratios()
        if law == JUDGED:
            found |= self.held.drive()
            found |= {key: median(self.users[count]) / median(self.users[1])
                      for key, count in USERS_KEYS.items() if self.users.get(count)}
            found |= dict.fromkeys(self.failed - set(found), 0.0)
        return found


def vocabulary() -> int:
    """Token ids that the file has."""
    found = real_vocabulary()["tokenizer.ggml.tokens"]
    assert isinstance(found, list)
    return len(found)


def rounds_with(law: Law, rounds: int) -> int:
    """Of laws on which no bar counts, one."""
    return rounds if law is JUDGED else 1


def asked_of(case: Case, law: Law, number: int) -> list[list[int]]:
    """The token ids of a round; of a law that drifts, the first topic is half over."""
    return [tokens(law, case.tokens, number, vocabulary(), STRETCH // 2)]


def measure_resident(bench: Bench, keys: Sequence[str], rounds: int, results: Results) -> None:
    """All laws with everything in memory: both processes stay, one stopped while the other computes."""
    with bench.ours(int(WHOLE * bench.path.stat().st_size), RESIDENT_KV) as (ours, facts), \
            peers.peer(bench.path, bench.threads, mapped=False) as theirs:
        results.plain["resident: path, kernel"] = f"{facts['backend']}, {facts['kernel']}"
        # Every expert is in memory behind a prompt that wants all of them.
        every = bench.ids([tokens(Law.UNIFORM, PREFILL, 99, vocabulary())])
        ours.ask(f"forced_prefill warm {every}")

        def one(case: Case, law: Law, number: int) -> tuple[Asked, Asked]:
            command = f"{case.command} warm {bench.ids(asked_of(case, law, number))}"
            with theirs.stopped():
                mine = ask(ours, command)
            return mine, ask(theirs, command)

        for key in keys:
            for law in Law:
                found = rounds_of(rounds_with(law, rounds), partial(one, CASES[key], law))
                results.samples.setdefault(key, {})[law] = found
                missed = sum(int(answer["missed_bytes"]) for answer in found.answers)
                if missed:
                    results.plain[f"NOT RESIDENT: {CASES[key].name}, {law}"] = f"{missed / MIB:.0f} MiB were missed"


def measure_short(bench: Bench, key: str, rounds: int, results: Results) -> None:
    """All laws with half the file as memory: two new processes a round."""
    case = CASES[key]

    def one(law: Law, number: int) -> tuple[Asked, Asked]:
        command = f"{case.command} cold {bench.ids(asked_of(case, law, number))}"
        with bench.ours_short() as (side, facts, group):
            mine = ask(side, command)
            routes = bench.scratch / f"routes-{law}-{number}"
            side.ask(f"routes {routes}")
            mine.answer.update(slots=facts["slots"], routes=str(routes), raw=side.ask("raw")["bytes_per_second"])
            note_memory(OURS, group, results)
        fewer = [each[: case.theirs or None] for each in asked_of(case, law, number)]
        with bench.theirs_short() as (side, group):
            their = ask(side, f"{case.command} cold {bench.ids(fewer)}")
            note_memory("llama.cpp", group, results)
        return mine, their

    for law in Law:
        results.samples.setdefault(key, {})[law] = found = rounds_of(rounds_with(law, rounds), partial(one, law))
        if key == LIMITED:
            cached = results.cached[law] = Cached()
            for answer in found.answers:
                cached.saw(answer)


def measure_drive(bench: Bench, rounds: int, results: Results) -> None:
    """Ours alone, the drive held so that misses bound the passes."""
    for number in range(rounds):
        with ExitStack() as stack:
            results.plain["drive, where its part is measured"] = hold(bench.path, HELD, stack)
            side, facts, _ = stack.enter_context(bench.ours_short())
            found = ask(side, f"forced cold {bench.ids([tokens(JUDGED, HELD_TOKENS, number, vocabulary())])}")
            routes = bench.scratch / f"held-{number}"
            side.ask(f"routes {routes}")
            results.held.saw({**found.answer, "slots": facts["slots"], "routes": str(routes),
                              "raw": side.ask("raw")["bytes_per_second"]})
    results.plain["drive, held"] = results.held.lines("held")["drive, held"]


def note_memory(side: str, group: MemoryGroup, results: Results) -> None:
    """What a side had of its memory, and whether that was enough."""
    results.plain[f"memory of {side}, MiB"] = f"{group.most() / MIB:.0f} of {group.limit / MIB:.0f}"
    results.plain[f"killed for memory: {side}"] = str(group.kills())


def measure_users(bench: Bench, rounds: int, results: Results) -> None:
    """Ours alone with memory short: one user, four, and eight, in turns, each in another part of their topics."""
    with bench.ours_short() as (side, _, group):
        def rate(users: int, number: int, steps: int) -> Asked:
            ids = [tokens(JUDGED, steps + 1, 1000 * number + 10 * users + user, vocabulary(),
                          (STRETCH // 2 + user * STRETCH // users) % STRETCH) for user in range(users)]
            return ask(side, f"forced cold {bench.ids(ids)}")

        rate(max(USERS), rounds, USER_STEPS // 10)
        hits: dict[int, float] = {}
        for number in range(rounds):
            for users in USERS:
                found = rate(users, number, USER_STEPS)
                results.users.setdefault(users, []).append(found.rate)
                hit, missed = sum(found.answer["hits"]), sum(found.answer["misses"])
                hits[users] = hit / max(1, hit + missed)
                if found.others > QUIET:
                    results.plain[f"NOT QUIET: {users} users"] = f"others had {found.others:.0%} of the processors"
        note_memory("ours, users", group, results)
        results.plain["users: tokens/s, hit rate"] = ", ".join(
            f"{users}: {median(results.users[users]):.1f}, {hits[users]:.2f}" for users in USERS)


def measure(bench: Bench, only: Sequence[str], rounds: int, results: Results) -> None:
    """All parts that these keys belong to; one that fails says so and leaves the others alone."""
    wanted = {WITH.get(key, key) for key in only}
    resident = [key for key, case in CASES.items() if key in wanted and not case.short]
    parts: list[tuple[list[str], Callable[[], None]]] = []
    if resident:
        parts.append((resident, partial(measure_resident, bench, resident, rounds, results)))
    for key in (key for key, case in CASES.items() if key in wanted and case.short):
        own = [key, *(each for each, other in WITH.items() if other == key)]
        parts.append((own, partial(measure_short, bench, key, rounds, results)))
    if DRIVE in wanted:
        parts.append(([DRIVE], partial(measure_drive, bench, rounds, results)))
    if wanted & set(USERS_KEYS):
        parts.append(([*USERS_KEYS], partial(measure_users, bench, rounds, results)))
    for keys, part in parts:
        try:
            part()
        except (NoMemoryGroups, PeerError) as error:
            results.plain[f"not measured: {', '.join(keys)}"] = str(error)
            if isinstance(error, PeerError) and error.name == OURS:
                results.failed.update(keys)


def lines(results: Results) -> dict[str, str]:
    """What the table says beside the ratios."""
    found = {}
    for key, by_law in results.samples.items():
        for law, samples in by_law.items():
            found[f"{CASES[key].name}, {law}"] = (f"{samples.ratio:.2f}: ours {median(samples.ours):.1f}, "
                                                  f"llama.cpp {median(samples.theirs):.1f} tokens/s")
        noisy = {law: max(samples.others) for law, samples in by_law.items() if max(samples.others) > QUIET}
        if noisy:
            shares = ", ".join(f"{law} {share:.0%}" for law, share in noisy.items())
            found[f"NOT QUIET: {CASES[key].name}"] = f"others had up to so much of the processors: {shares}"
    for law, cached in results.cached.items():
        found |= cached.lines(law)
    return found


def report(results: Results, bench: Bench, rounds: int, drive: str, began: float) -> None:
    """Medians, ratios and the table; it `began` then, by the monotonic clock."""
    ratios = results.ratios(JUDGED)
    retaken = sum(samples.retaken for by_law in results.samples.values() for samples in by_law.values())
    plain = {
        "routes": "drawn from laws, by weights made for that: no real router was seen",
        "law that is judged": f"{JUDGED}; of the others one round",
        "goals": "; ".join(f"{case.name}: {case.goal}" for case in CASES.values() if case.goal != case.bar),
        **lines(results), "drive": drive, "rounds taken again": str(retaken), "measured against": peers.name(),
        "file, threads": f"{bench.path.name}, {bench.path.stat().st_size / MIB:.0f} MiB, {bench.threads}",
        **results.plain, "all of it took, minutes": f"{(time.monotonic() - began) / 60:.1f}"}
    show(f"a mixture of experts beside llama.cpp, medians of {rounds}", ratios, BARS, plain)
    write("experts", {
        **ratios, "plain": plain, "laws": {law: results.ratios(law) for law in Law},
        "caches": {law: asdict(cached) for law, cached in results.cached.items()}, "users": results.users,
        "rounds": {key: {law: asdict(samples) for law, samples in by_law.items()}
                   for key, by_law in results.samples.items()}})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.experts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=8, help=f"of {SHAPE_30B_A3B['qwen3moe'].layers}")
    parser.add_argument("--only", nargs="+", choices=list(BARS), metavar="KEY", default=list(BARS))
    parser.add_argument("--cap", type=int, help="MB/s that a cgroup holds the drive at")
    chosen = parser.parse_args(arguments)
    if not peers.NATIVE.exists():
        parser.error("there is no llama.cpp to measure against: make llamacpp")
    path, results, began = bench_model(HOME, chosen.layers), Results(), time.monotonic()
    with ExitStack() as stack:
        drive = hold(path, chosen.cap * 10**6 if chosen.cap else None, stack)
        bench = Bench(path, chosen.threads, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        measure(bench, chosen.only, chosen.rounds, results)
        report(results, bench, chosen.rounds, drive, began)


if __name__ == "__main__":
    main()
