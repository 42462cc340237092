"""Is this tree as fast as an earlier commit? Both serve the same file and take turns; writes build/bench/before.json.

    python -m bench.before REVISION [--rounds 5] [--model FILE]

Ratios are this tree's tokens a second over those of the revision, medians over the rounds: with all weights in memory,
and with half of them. Bytes a prompt token are what the drive gave for a long prompt then; memory is bytes beside
weights and KV cache.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.company import Company
from bench.report import Bar, show, write
from bench.serving import FIRST_PLAIN, MODEL, STREAM_SECONDS, decode_rate, memory_besides, prefill_rate, serve
from nvstream.v1.inference_pb2 import TIER_NVME
from support.daemon import Daemon
from support.files import ROOT, SMOLLM2

MIB = 1 << 20
HOME = ROOT / "build/before"
PARTS = ("daemon", "dma", "clients/python")
LIBRARY = Path("daemon/nvstreamd/kernels/_cpu.so")
ONE, EIGHT, TOKENS, PROMPT, LONG = 1, 8, 128, 60, 1024
Figure = Callable[[Daemon, random.Random], float]


def bytes_a_prompt_token(daemon: Daemon, draw: random.Random) -> float:
    """Bytes off the drive for each token of a long prompt, of which one token is asked for."""
    prompt = [draw.randrange(FIRST_PLAIN, FIRST_PLAIN + 10_000) for _ in range(LONG)]
    answer = daemon.generate(MODEL, prompt, timeout=STREAM_SECONDS, max_tokens=1, ignore_eos=True)
    assert answer.finished is not None and answer.finished.usage.cached_tokens == 0
    return sum(tier.bytes for tier in answer.finished.usage.bytes if tier.tier == TIER_NVME) / LONG


# With all weights in memory, and with half of them.
RESIDENT: dict[str, Figure] = {
    "decode_over_before": lambda daemon, _: decode_rate(daemon, ONE, TOKENS),
    "eight_users_over_before": lambda daemon, _: decode_rate(daemon, EIGHT, TOKENS),
    "prefill_over_before": lambda daemon, draw: prefill_rate(daemon, PROMPT, draw),
}
HALF: dict[str, Figure] = {
    "half_decode_over_before": lambda daemon, _: decode_rate(daemon, ONE, TOKENS),
    "half_eight_users_over_before": lambda daemon, _: decode_rate(daemon, EIGHT, TOKENS),
    "half_prefill_over_before": lambda daemon, draw: prefill_rate(daemon, PROMPT, draw),
    "half_bytes_a_prompt_token_over_before": bytes_a_prompt_token,
}
LEAST = Bar(0.97)
BARS = {key: LEAST for key in (*RESIDENT, *HALF)} | {"half_bytes_a_prompt_token_over_before": Bar(1.0, most=True)}


def check_out(revision: str) -> Path:
    """The tree of a revision, in which its kernels are built."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", revision], cwd=ROOT, check=True, capture_output=True,
                            text=True).stdout.strip()
    tree = HOME / commit
    if not (tree / LIBRARY).exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        subprocess.run([sys.executable, str(tree / "scripts/build_kernels.py")], check=True)
    return tree


def measure(model: Path, trees: dict[str, Path], rounds: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """{figure: {side: a value a round}}, and the share of the processors that others had meanwhile."""
    keys = (*RESIDENT, *HALF, "memory")
    found: dict[str, dict[str, list[float]]] = {key: {side: [] for side in trees} for key in keys}
    draw = random.Random(1)
    with ExitStack() as stack:
        daemons = {}
        for side, tree in trees.items():
            path = ":".join(str(tree / part) for part in PARTS)
            budget = 2 * model.stat().st_size
            memory = ["--memory", f"{budget // MIB + 512}MiB"]
            daemons[side] = serve(model, stack, memory, environment={"PYTHONPATH": path})
        shares = []
        for figures, allowed in ((RESIDENT, budget), (HALF, model.stat().st_size // 2)):
            for daemon in daemons.values():
                daemon.load(MODEL, allowed)
            company = Company()
            for _ in range(rounds):
                for key, figure in figures.items():
                    for side, daemon in daemons.items():
                        found[key][side].append(figure(daemon, draw))
            # While the engines run: what has ended counts as others.
            shares.append(company.share())
            for side, daemon in daemons.items():
                if figures is RESIDENT:
                    found["memory"][side].append(memory_besides(daemon, PROMPT * rounds) / MIB)
                daemon.unload(MODEL)
        return found, max(shares)


def main() -> int:
    """Exit status 1 when a rate is lower by more than three in a hundred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=SMOLLM2)
    given = parser.parse_args()
    found, others = measure(given.model.resolve(), {"before": check_out(given.revision), "now": ROOT}, given.rounds)
    ratios = {key: statistics.median(sides["now"]) / statistics.median(sides["before"])
              for key, sides in found.items()}
    plain = {f"{key.removesuffix('_over_before')}, {side}": f"{statistics.median(values):.1f} "
             f"({min(values):.1f} to {max(values):.1f})" for key, sides in found.items()
             for side, values in sides.items()}
    plain["share of the processors that others had"] = f"{others:.2f}"
    show(f"This tree over {given.revision}: {given.model.name}", ratios, BARS, plain)
    write("before", {"revision": given.revision, "model": given.model.name, "ratios": ratios, "values": found})
    return int(not all(bar.holds(ratios[key]) for key, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main())
