"""What do guesses save where answers repeat what they hold, and what do they cost where they do not?

Half of the weights stream. Ratios are tokens a second with guesses over those without, the same daemon in turns, the
answers equal to the token. Each round has other prompts: that a user's earlier answers are guessed from would flatter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.report import Bar
from bench.serving import MODEL, STREAM_SECONDS, serve
from support.daemon import Collected, Daemon
from support.files import GEMMA3, SMOLLM2

MIB = 1 << 20
TOKENS, KV = 160, 128 * MIB
LEAST_ACCEPTED = 0.7
KEYS = {"speculation_repeat_ratio": Bar(2.0), "speculation_repeat_four_users_ratio": Bar(1.5),
        "speculation_prose_ratio": Bar(0.97)}
NAMES = ("width", "height", "depth", "length", "radius", "volume", "weight", "speed", "angle", "price", "count", "sum")
PLACES = ("a village by the sea", "a town in the hills", "a house at the edge of a wood", "the harbour of an island",
          "an old mill", "a school in the city", "a farm in the north", "a castle on a rock")


def repeating(number: int) -> str:
    """A text whose continuation repeats it: functions of one form, thrice."""
    one, other = NAMES[number % len(NAMES)], NAMES[(number * 5 + 3) % len(NAMES)]
    text = f"def {one}_of({other}, n):\n    return {other} * n + {number}\n\n\n"
    return text + text.replace("_of", "_at") + text + text.replace("_of", "_at")


def prose(number: int) -> str:
    """A text that goes on with something new."""
    return f"In {PLACES[number % len(PLACES)]}, {number + 3} years ago, there lived"


def rate(daemon: Daemon, prompts: Sequence[str], *, speculation: bool, temperature: float = 0.0
         ) -> tuple[float, list[Collected]]:
    """Tokens a second of all prompts at once, and the answers."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: daemon.generate(
            MODEL, prompt, STREAM_SECONDS, max_tokens=TOKENS, ignore_eos=True, speculation=speculation,
            temperature=temperature, seed=len(prompt)), prompts))
    assert all(answer.finished is not None for answer in answers), answers[0].error
    return len(prompts) * TOKENS / (time.perf_counter() - begin), answers


def compare(daemon: Daemon, rounds: Sequence[Sequence[str]], temperature: float) -> tuple[float, float]:
    """The median ratio over rounds of prompts, and the part of the guesses that was right."""
    ratios, proposed, accepted = [], 0, 0
    for prompts in rounds:
        # Without first: nothing of this round is known by then, but what the prompts hold.
        without, plain = rate(daemon, prompts, speculation=False, temperature=temperature)
        guessed, answers = rate(daemon, prompts, speculation=True, temperature=temperature)
        assert [answer.ids for answer in answers] == [answer.ids for answer in plain]
        proposed += sum(answer.finished.usage.proposed_tokens for answer in answers)
        accepted += sum(answer.finished.usage.accepted_tokens for answer in answers)
        ratios.append(guessed / without)
    return statistics.median(ratios), accepted / max(1, proposed)


def measure_model(path: Path, name: str, threads: int, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """{key: ratio} of one model, and lines with acceptance."""
    size = path.stat().st_size
    found, plain = {}, {}
    cases = {
        "speculation_repeat_ratio": [[repeating(at)] for at in range(rounds)],
        "speculation_repeat_four_users_ratio": [[repeating(at) for at in range(4 * n, 4 * n + 4)]
                                                for n in range(rounds, 2 * rounds)],
        "speculation_prose_ratio": [[prose(at)] for at in range(rounds)],
    }
    with ExitStack() as stack:
        daemon = serve(path, stack, ["--threads", str(threads), "--memory", str(size + 2 * KV)])
        daemon.load(MODEL, size // 2, kv_budget=KV)
        rate(daemon, [prose(99)], speculation=False)
        for key, prompts in cases.items():
            # Greedy prose of small models goes round in circles: drawn, it does not.
            ratio, right = compare(daemon, prompts, 1.0 if "prose" in key else 0.0)
            plain[f"{key}, {name}"] = f"{ratio:.2f}, {right:.0%} of the guesses right"
            if right >= LEAST_ACCEPTED or "prose" in key:
                found[key] = ratio
    return found, plain


def measure(threads: int, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """The least ratio of both models by key, counted only where most guesses were right; lines on each."""
    small, plain = measure_model(SMOLLM2, "smollm2", threads, rounds)
    large, more = measure_model(GEMMA3, "gemma3", threads, rounds)
    keys = {key: min(ratios[key] for ratios in (small, large) if key in ratios)
            for key in KEYS if key in small or key in large}
    return keys, plain | more
