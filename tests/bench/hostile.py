"""Can one user stall, starve, deafen or kill the others? Writes build/bench/hostile.json.

Real daemons with a real model, real clients under uids of their own (so it needs root), every attack beside a quiet
user. Attacks are bounded in count and time.

    python -m bench.hostile [--rounds 3] [--share-seconds 120] [--only KEY...]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.hostile_daemon import MIB, MODEL, daemon, kill_at_work, resident, shown
from bench.report import Bar, show, write
from support.as_user import may_become_others, other
from support.daemon import Daemon
from support.files import SMOLLM2

QUIET, HOSTILE, THIRD = 20_001, 20_002, 20_003
BARS = {
    "flood_first_token_over_idle": Bar(3, most=True),
    "gap_under_text_flood": Bar(2, most=True),
    "gap_under_schema_flood": Bar(2, most=True),
    "gap_under_get_flood": Bar(2, most=True),
    "jain_eight_users": Bar(0.98),
    "share_error": Bar(0.10, most=True),
    "places_left_under_flood": Bar(0, most=True),
    "daemon_growth_mib": Bar(64, most=True),
    "poison_restarts": Bar(3, most=True),
    "poison_others_unharmed": Bar(1),
    "stop_seconds_beyond_drain": Bar(3, most=True),
    "frozen_noticed_seconds": Bar(40, most=True),
    "injected_control_tokens": Bar(0, most=True),
}
STREAM_TOKENS = 400
GROWTH_SETTLES_SECONDS = 60.0


class Bench:
    """Figures as they come in; `plain` has those without a bar."""

    def __init__(self, rounds: int, share_seconds: float) -> None:
        self.rounds = rounds
        self.share_seconds = share_seconds
        self.ratios: dict[str, float] = {}
        self.plain: dict[str, str] = {}

    def flood(self) -> None:
        """The first token of a short request behind 64 requests of 7,000 tokens of somebody else, in passes."""
        with daemon("max_queued = 128\n") as served:
            idle = self._short(served)
            address = str(served.socket)
            with other(HOSTILE, "place_flood", socket=address, model=MODEL, streams=64, prompt=7000) as flood:
                flood.wait_ready()
                beside = self._short(served)
                flood.tell()
                self.plain["requests of the flood that were let in"] = str(flood.result())
        self.ratios["flood_first_token_over_idle"] = statistics.median(beside["passes"]) - statistics.median(
            idle["passes"])
        self.plain["first token, idle"] = shown(idle["first"], "ms", 1e3)
        self.plain["first token under the flood"] = shown(beside["first"], "ms", 1e3)
        self.plain["passes to it under the flood"] = shown(beside["passes"], "passes")

    def _short(self, served: Daemon) -> dict[str, list[float]]:
        with other(QUIET, "short_request", socket=str(served.socket), model=MODEL, times=20) as quiet:
            found: Any = quiet.result()
        assert not any(each["error"] for each in found), found
        return {key: [each[key] for each in found] for key in ("first", "passes")}

    def gaps(self) -> None:
        """The 99th percentile of a stream's gaps under attack, over that under as much plain load of that user."""
        attacks: dict[str, tuple[str, dict[str, object]]] = {
            "text": ("text_flood", {"model": MODEL}), "schema": ("schema_flood", {"model": MODEL}),
            "get": ("get_flood", {"model": "unloaded"}),
        }
        with daemon() as served, tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "unloaded.gguf").symlink_to(SMOLLM2)
            for name, (attack, arguments) in attacks.items():
                loaded, attacked = [], []
                for _ in range(self.rounds):
                    loaded.append(self._gap(served, "burn", threads=os.cpu_count() or 1))
                    attacked.append(self._gap(served, attack, socket=str(served.socket), **arguments))
                self.ratios[f"gap_under_{name}_flood"] = statistics.median(
                    there / here for there, here in zip(attacked, loaded, strict=True))
                self.plain[f"99th percentile of gaps, {name} flood"] = shown(attacked, "ms", 1e3)
                self.plain[f"the same under plain load, {name}"] = shown(loaded, "ms", 1e3)

    def _gap(self, served: Daemon, attack: str, **arguments: object) -> float:
        with other(HOSTILE, attack, **arguments) as under_way:
            under_way.wait_ready()
            with other(QUIET, "stream_gaps", socket=str(served.socket), model=MODEL, tokens=STREAM_TOKENS) as quiet:
                quiet.wait_ready()
                gaps: Any = quiet.result()
            under_way.tell()
            under_way.result()
        return float(sorted(gaps)[int(len(gaps) * 0.99)])

    def jain(self) -> None:
        """Jain's index of tokens that eight users get, who keep from one to eight requests open."""
        with daemon() as served:
            had = self._tokens(served, {QUIET + number: number + 1 for number in range(8)}, self.share_seconds / 4)
        self.ratios["jain_eight_users"] = sum(had) ** 2 / (len(had) * sum(each**2 for each in had))
        self.plain["tokens of eight users"] = ", ".join(map(str, had))

    def share(self) -> None:
        """The largest error of the shares of users of weight 1, 2 and 4."""
        weights = {QUIET: 1, HOSTILE: 2, THIRD: 4}
        quotas = "".join(f'[[quotas]]\nuser = "{uid}"\nweight = {weight}\n' for uid, weight in weights.items())
        with daemon(quotas) as served:
            had = self._tokens(served, dict.fromkeys(weights, 10), self.share_seconds)
        expected = [weight / sum(weights.values()) for weight in weights.values()]
        self.ratios["share_error"] = max(abs(tokens / sum(had) / share - 1)
                                         for tokens, share in zip(had, expected, strict=True))
        self.plain["tokens by weight 1, 2, 4"] = ", ".join(map(str, had))

    def _tokens(self, served: Daemon, streams: dict[int, int], seconds: float) -> list[int]:
        """What users get who all start at once."""
        had: dict[int, Any] = {}

        def one(uid: int, count: int) -> None:
            with other(uid, "tokens_had", socket=str(served.socket), model=MODEL, streams=count, tokens=48,
                       seconds=seconds) as user:
                user.wait_ready()
                ready.wait()
                user.tell()
                had[uid] = user.result()

        ready = threading.Barrier(len(streams))
        threads = [threading.Thread(target=one, args=each) for each in streams.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [had[uid] for uid in streams]

    def places(self) -> None:
        """Requests of another user that are refused while one takes every place that there is."""
        with daemon() as served, other(HOSTILE, "place_flood", socket=str(served.socket), model=MODEL, streams=250,
                                       prompt=50) as flood:
            flood.wait_ready()
            with other(QUIET, "short_request", socket=str(served.socket), model=MODEL, times=40) as quiet:
                found: Any = quiet.result()
            flood.tell()
            self.plain["places that the flood got"] = str(flood.result())
        self.ratios["places_left_under_flood"] = sum(bool(each["error"]) for each in found)

    def growth(self) -> None:
        """MiB that the daemon keeps, at most, after large calls, idle connections and unread streams."""
        with daemon() as served:
            at_first = resident(served)
            kept = {}
            address = str(served.socket)
            with other(HOSTILE, "large_calls", socket=address, model=MODEL, calls=40, size=16 * MIB) as hostile:
                hostile.result()
            kept["large calls"] = self._settled(served, at_first)
            with other(HOSTILE, "idle_connections", socket=address, connections=2000) as hostile:
                hostile.wait_ready()
                hostile.tell()
                self.plain["idle connections kept"] = str(hostile.result())
            kept["idle connections"] = self._settled(served, at_first)
            with other(HOSTILE, "unread_streams", socket=address, model=MODEL, streams=8, tokens=8000,
                       logprobs=20) as hostile:
                hostile.wait_ready()
                served.wait("the streams to be given up", lambda: served.engine(MODEL).running == 0)
                hostile.tell()
                hostile.result()
            kept["unread streams"] = self._settled(served, at_first)
        self.ratios["daemon_growth_mib"] = max(kept.values())
        self.plain["MiB kept after"] = ", ".join(f"{what} {mib:.0f}" for what, mib in kept.items())

    def _settled(self, served: Daemon, at_first: float) -> float:
        """The growth once what is freed late is freed: the least in a while."""
        least, end = float("inf"), time.monotonic() + GROWTH_SETTLES_SECONDS
        while time.monotonic() < end and least > BARS["daemon_growth_mib"].value / 2:
            served.process.poll()
            least = min(least, resident(served) - at_first)
            threading.Event().wait(0.5)
        return least

    def poison(self) -> None:
        """Engines that a request costs which kills each of them, and whether others had the same tokens after all."""
        with daemon() as served:
            prompts = [f"{number} quiet users:" for number in range(4)]
            alone = [served.generate(MODEL, prompt, max_tokens=200, ignore_eos=True).ids for prompt in prompts]
            beside: list[list[int]] = []
            others = threading.Thread(target=lambda: beside.extend(
                stream.ids for stream in served.generate_all(MODEL, prompts, max_tokens=200, ignore_eos=True)))
            others.start()
            served.wait("the others to run", lambda: served.engine(MODEL).running == len(prompts))
            self.plain["what the poison got"] = kill_at_work(served, "word " * 4000)
            others.join()
            self.ratios["poison_restarts"] = served.engine(MODEL).restarts
        self.ratios["poison_others_unharmed"] = float(beside == alone)

    def stop(self) -> None:
        """Seconds that a daemon takes to end beyond its drain, with suspended, unreading and flooding clients."""
        drain = 2.0
        with daemon(f"drain_seconds = {drain}\n") as served:
            address = str(served.socket)
            with (other(HOSTILE, "suspended_stream", socket=address, model=MODEL) as suspended,
                  other(HOSTILE, "unread_streams", socket=address, model=MODEL, streams=4, tokens=8000,
                        logprobs=20) as unread,
                  other(THIRD, "text_flood", socket=address, model=MODEL) as flood):
                for each in (suspended, unread, flood):
                    each.wait_ready()
                for each in (suspended, unread):
                    each.process.send_signal(signal.SIGSTOP)
                start = time.monotonic()
                served.process.send_signal(signal.SIGTERM)
                served.process.wait(timeout=120)
                self.ratios["stop_seconds_beyond_drain"] = time.monotonic() - start - drain

    def frozen(self) -> None:
        """Seconds until an engine that was stopped is replaced."""
        with daemon() as served:
            stream = served.open(MODEL, "Count:", max_tokens=300, ignore_eos=True)
            next(event for event in stream if event.HasField("delta"))
            pid, start = served.engine(MODEL).pid, time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            served.wait("the engine to be replaced", lambda: served.engine(MODEL).pid not in (0, pid))
            self.ratios["frozen_noticed_seconds"] = time.monotonic() - start
            left = sum(len(event.delta.token_ids) for event in stream)
            self.plain["tokens of the stream after it"] = str(left)

    def injected(self) -> None:
        """Control tokens that 20 conversations spell, over 12 shapes of templates."""
        from hostile.test_control_tokens import injected_tokens

        self.ratios["injected_control_tokens"] = injected_tokens()


def main() -> int:
    """Exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share-seconds", type=float, default=120.0)
    parser.add_argument("--only", nargs="*", default=[], help="keys, or the beginnings of keys")
    given = parser.parse_args()
    if not may_become_others():
        sys.exit("bench-hostile: only root can call as several users: run it as root")
    bench = Bench(given.rounds, given.share_seconds)
    parts: dict[str, Callable[[], None]] = {
        "flood": bench.flood, "gap": bench.gaps, "jain": bench.jain, "share": bench.share, "places": bench.places,
        "daemon_growth": bench.growth, "poison": bench.poison, "stop": bench.stop, "frozen": bench.frozen,
        "injected": bench.injected,
    }
    for name, part in parts.items():
        if not given.only or any(key.startswith(name) or name.startswith(key) for key in given.only):
            print(f"bench-hostile: {name}: {(part.__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
            part()
    show("Users beside hostile users", bench.ratios, BARS, bench.plain)
    write("hostile", {"ratios": bench.ratios, "bars": {key: str(bar) for key, bar in BARS.items()},
                      "plain": bench.plain})
    return int(any(not BARS[key].holds(figure) for key, figure in bench.ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
