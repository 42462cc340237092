"""How fast is a card, by part? Adds to build/bench/gpu.json, with the card, its driver and its link.

    python -m bench.gpu --part kernels|resident|tiered|experts [--rounds N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import gpu_beside, gpu_kernels, gpu_resident
from bench.report import Bar, show, write
from nvdma.gpu.driver import Driver
from nvstreamd.kernels.gpu_units import Compiler
from support import real_card
from support.files import ROOT

FOUND = ROOT / "build" / "bench" / "gpu.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What a part measures, its bars, and the rounds that it takes where nobody says."""

    measure: Callable[[Driver, Compiler, int], tuple[dict[str, float], dict[str, str]]]
    bars: Mapping[str, Bar]
    rounds: int


PARTS = {"kernels": Part(gpu_kernels.measure, gpu_kernels.BARS, 7),
         "resident": Part(gpu_resident.measure, gpu_resident.BARS, 7),
         "tiered": Part(gpu_beside.tiered, gpu_beside.TIERED_BARS, 2),
         "experts": Part(gpu_beside.experts, gpu_beside.EXPERTS_BARS, 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), required=True)
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args(arguments)
    driver, compiler = real_card.open_card()
    card = driver.card()
    part = PARTS[chosen.part]
    rounds = chosen.rounds or part.rounds
    ratios, plain = part.measure(driver, compiler, rounds)
    plain = {"card": f"{card.name}, {card.memory >> 30} GiB, {card.driver}", **plain}
    show(f"{chosen.part} on a card, medians of {rounds}", ratios, part.bars, plain)
    before = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    write("gpu", {**before, chosen.part: {**ratios, "plain": plain}})


if __name__ == "__main__":
    main()
