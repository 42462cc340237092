"""Are the products as fast as an earlier commit's? Its bench.kernels and this tree's take turns, a type at a time.

    python -m bench.kernels_before REVISION [--visits 3] [--rounds 5] [--type Q4_0 ...]

Writes build/bench/kernels_before.json. A figure is the earlier time over this tree's, medians over all rounds of all
visits: above 1, this tree is faster. A type's figures are of its product by rows of activations; the figure of a width
is the geometric mean over the types.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.before import PARTS, check_out
from bench.kernels import WIDTHS
from bench.report import Bar, show, write
from nvstreamd import ggml
from support.files import ROOT

LEAST = Bar(0.97)
VISIT_SECONDS = 300.0
NOW = "kernels_now"
Times = dict[int, list[float]]


def visit(tree: Path, kind: str, rounds: int) -> Times:
    """{rows: seconds a round} of the products of one type, by a process of that tree; no peer computes beside it."""
    path = os.pathsep.join(str(tree / part) for part in (*PARTS, "tests"))
    own = ["--alone", "--name", NOW] if tree == ROOT else []
    command = [sys.executable, "-m", "bench.kernels", "--rounds", str(rounds), "--type", kind, *own]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=tree, check=True, timeout=VISIT_SECONDS,
                   stdout=subprocess.DEVNULL)
    written = tree / "build/bench" / (f"{NOW}.json" if own else "kernels.json")
    samples = json.loads(written.read_text())["seconds"][kind]["ours"]
    return {int(rows): times for rows, times in samples.items()}


def measure(trees: dict[str, Path], kind: str, visits: int, rounds: int) -> dict[str, Times]:
    """{side: {rows: seconds}} of one type: the sides take turns, and who begins alternates."""
    found: dict[str, Times] = {side: {rows: [] for rows in WIDTHS} for side in trees}
    for number in range(visits):
        for side in sorted(trees, reverse=bool(number % 2)):
            for rows, times in visit(trees[side], kind, rounds).items():
                found[side][rows] += times
    return found


def gains(found: dict[str, Times]) -> dict[int, float]:
    """{rows: the earlier median over this tree's}."""
    return {rows: statistics.median(found["before"][rows]) / statistics.median(found["now"][rows]) for rows in WIDTHS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when the products of a width are slower by more than three in a hundred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    names = [kind.name for kind in ggml.SUPPORTED]
    parser.add_argument("--type", nargs="+", choices=names, default=names)
    given = parser.parse_args(arguments)
    trees = {"before": check_out(given.revision), "now": ROOT}
    found = {kind: measure(trees, kind, given.visits, given.rounds) for kind in given.type}
    by_type = {kind: gains(sides) for kind, sides in found.items()}
    ratios = {f"products_of_{rows}_rows_over_before": statistics.geometric_mean(by[rows] for by in by_type.values())
              for rows in WIDTHS}
    plain = {f"{kind} by rows": "  ".join(f"{rows}: {gain:.2f}" for rows, gain in by.items())
             for kind, by in by_type.items()}
    bars = dict.fromkeys(ratios, LEAST)
    show(f"Products of this tree over {given.revision}'s", ratios, bars, plain)
    write("kernels_before", {"revision": given.revision, "ratios": ratios, "by_type": by_type, "seconds": found})
    return int(not all(bar.holds(ratios[key]) for key, bar in bars.items()))


if __name__ == "__main__":
    sys.exit(main())
