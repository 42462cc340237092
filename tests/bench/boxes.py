"""How fast would machines be that nobody here has? Simulated: `make bench-boxes`, figures in build/bench/boxes.json.

The engine's planner, flow, runner and scheduler run by a clock that only counts, at published rates (boxes/box.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench import report
from bench.report import Bar
from support.boxes.box import BOXES
from support.boxes.shapes import MODELS, written
from support.boxes.simulate import Outcome, simulate

USERS = (1, 8, 32)


def row(box: str, model: str, outcomes: dict[int, Outcome]) -> str:
    """A line of docs/performance.md."""
    cells = [f"{each.tokens_per_second:.3g} ({each.over_bound:.2f})" for each in outcomes.values()]
    return f"| {box} | {model} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table of docs/performance.md, and each pass over its bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.boxes", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    chosen = parser.parse_args()
    ratios: dict[str, float] = {}
    figures: dict[str, dict[str, float]] = {}
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for model in chosen.models:
            path = written(model, Path(home))
            for box in BOXES:
                outcomes = {}
                for users in USERS:
                    found = outcomes[users] = simulate(box, path, users)
                    key = f"{box.name}_{model}_{users}_users".replace(" ", "_")
                    ratios[f"{key}_pass_over_bound"] = found.over_bound
                    figures[key] = {"tokens_per_second": found.tokens_per_second, "pass_seconds": found.seconds,
                                    "bound_seconds": found.bound, "predicted_seconds": found.predicted}
                    print(f"{key}: {found.tokens_per_second:.3g} tokens/s", file=sys.stderr, flush=True)
                lines.append(row(box.name, model, outcomes))
    report.show("Simulated boxes", ratios, dict.fromkeys(ratios, Bar(1.10, most=True)), {})
    print("\n".join(lines))
    report.write("boxes", {"ratios": ratios, "figures": figures})


if __name__ == "__main__":
    main()
