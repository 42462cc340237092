"""Is this tree as fast as an earlier commit? Both serve the same file and take turns; writes build/bench/before.json.

    python -m bench.before REVISION [--rounds 5] [--model FILE]

Ratios are this tree's tokens a second over those of the revision, medians over the rounds; memory is this tree's bytes
beside weights and KV cache over the revision's.
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
from bench.serving import decode_rate, memory_besides, prefill_rate, serve
from support.daemon import Daemon
from support.files import ROOT, SMOLLM2

MIB = 1 << 20
HOME = ROOT / "build/before"
PARTS = ("daemon", "dma", "clients/python")
LIBRARY = Path("daemon/nvstreamd/kernels/_cpu.so")
KERNELS = ("daemon/nvstreamd/kernels/cpu", "scripts/build_kernels.py")
ONE, EIGHT, TOKENS, PROMPT = 1, 8, 128, 60
FIGURES: dict[str, Callable[[Daemon, random.Random], float]] = {
    "decode_over_before": lambda daemon, _: decode_rate(daemon, ONE, TOKENS),
    "eight_users_over_before": lambda daemon, _: decode_rate(daemon, EIGHT, TOKENS),
    "prefill_over_before": lambda daemon, draw: prefill_rate(daemon, PROMPT, draw),
}
LEAST = Bar(0.97)


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
        changed = subprocess.run(["git", "diff", "--quiet", commit, "--", *KERNELS], cwd=ROOT, check=False).returncode
        if changed:
            sys.exit(f"bench-before: the kernels of {commit} are others: build {tree / LIBRARY} with its own script")
        shutil.copy(ROOT / LIBRARY, tree / LIBRARY)
    return tree


def measure(model: Path, trees: dict[str, Path], rounds: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """{figure: {side: a value a round}}, and the share of the processors that others had meanwhile."""
    found: dict[str, dict[str, list[float]]] = {key: {side: [] for side in trees} for key in (*FIGURES, "memory")}
    draw = random.Random(1)
    with ExitStack() as stack:
        daemons = {}
        for side, tree in trees.items():
            path = ":".join(str(tree / part) for part in PARTS)
            budget = 2 * model.stat().st_size
            memory = ["--memory", f"{budget // MIB + 512}MiB"]
            daemons[side] = serve(model, stack, memory, environment={"PYTHONPATH": path})
            daemons[side].load("model", budget)
        company = Company()
        for _ in range(rounds):
            for key, figure in FIGURES.items():
                for side, daemon in daemons.items():
                    found[key][side].append(figure(daemon, draw))
        for side, daemon in daemons.items():
            found["memory"][side].append(memory_besides(daemon, PROMPT * rounds) / MIB)
        # While the daemons run: what has ended counts as others.
        return found, company.share()


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
    bars = dict.fromkeys(FIGURES, LEAST)
    show(f"This tree over {given.revision}: {given.model.name}", ratios, bars, plain)
    write("before", {"revision": given.revision, "model": given.model.name, "ratios": ratios, "values": found})
    return int(not all(bars[key].holds(ratios[key]) for key in FIGURES))


if __name__ == "__main__":
    sys.exit(main())
