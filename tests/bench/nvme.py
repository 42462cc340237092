"""Do our own queues read as fast as the kernel's driver under fio, and four drives four times as fast as one?

In QEMU guests; writes build/bench/nvme.json.

The drive is emulated, without KVM: a byte costs a copy on the host whoever asks for it, and a command costs what the
guest computes for it. So the ratio tells what the paths themselves cost. fio uses io_uring with the same depth and
size; the ways take turns, forth and back, and every figure is a median. `nvme_host_msix` is `nvme_host` with
interrupts in place of polling (bench/nvme_msix.py).

Four drives have a guest of their own, in which each read takes a fixed time (bench/nvme_stripes.py):
`four_drives_over_one` is their bandwidth over that of one of them, `in_flight_over_depth` how full the emptiest of the
four was kept.

    python -m bench.nvme [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import Bar, show, write
from vm.lab import MIB, ROOT, Drive, Guest, Hardware, image, missing

BARS = {"nvme_host_over_fio": Bar(1.0), "nvme_vram_over_fio": Bar(1.0), "four_drives_over_one": Bar(3.0),
        "in_flight_over_depth": Bar(0.9)}
BOOT_SECONDS, ROUND_SECONDS = 120, 60
# Long beside what a command costs the guest, so that four drives keep it no busier than it can be.
LATENCY_SECONDS = 0.05
DEPTH = 32

Samples = Mapping[str, Sequence[Mapping[str, Any]]]


def run(folder: Path, hardware: Hardware, module: str, rounds: int) -> Samples:
    """The samples that a bench took inside a guest, by their way. Exits with the guest's words when it failed."""
    folder.mkdir()
    path = ":".join(["tests", *filter(None, [os.environ.get("PYTHONPATH")])])
    job = f"PYTHONPATH={path} {ROOT}/.venv/bin/python -m {module} {rounds} {folder}/samples.json"
    result = Guest(folder, hardware).run(job, BOOT_SECONDS + ROUND_SECONDS * (rounds + 1))
    if result.status != 0 or result.faults:
        sys.exit(f"bench-nvme: the guest failed:\n{result}")
    found: Samples = json.loads((folder / "samples.json").read_text())
    return found


def measure(scratch: Path, rounds: int) -> tuple[Samples, Samples]:
    """Our queues beside fio, and stripes over drives."""
    drives = (Drive("LAB0", image(scratch / "drive0", 256 * MIB, filled=256 * MIB), 0x10, "mdts=8"),
              Drive("LAB1", image(scratch / "drive1", 8 * MIB), 0x11))
    beside = run(scratch / "beside", Hardware(drives, image(scratch / "bar", 64 * MIB)), "bench.nvme_guest", rounds)
    four = tuple(Drive(f"LAB{number}", image(scratch / f"four{number}", 256 * MIB), 0x10 + number, "mdts=8",
                       latency=LATENCY_SECONDS) for number in range(4))
    return beside, run(scratch / "four", Hardware(four), "bench.nvme_stripes", rounds)


def median(samples: Samples, way: str, figure: str) -> float:
    """Of one figure of one way."""
    return float(statistics.median(sample[figure] for sample in samples[way]))


def in_flight(samples: Samples, way: str) -> list[float]:
    """Reads under way on each drive of a way."""
    return [statistics.median(drive) for drive in zip(*(sample["in_flight"] for sample in samples[way]), strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.nvme", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    reason = missing()
    if reason:
        sys.exit(f"bench-nvme: no guest can be booted here: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        samples, drives = measure(Path(scratch), rounds)

    ratios = {f"{way}_over_fio": median(samples, way, "rate") / median(samples, "fio", "rate")
              for way in samples if way != "fio"}
    ratios["four_drives_over_one"] = median(drives, "four_drives", "rate") / median(drives, "one_drive", "rate")
    ratios["in_flight_over_depth"] = min(in_flight(drives, "four_drives")) / DEPTH
    plain = {f"{way}, GB/s": f"{median(samples, way, 'rate') / 1e9:.2f}" for way in samples}
    plain |= {f"{way}, CPU seconds a GB": f"{median(samples, way, 'cpu_seconds_a_gb'):.2f}" for way in samples}
    for way in drives:
        plain[f"{way} of {LATENCY_SECONDS * 1e3:g} ms a read, GB/s"] = f"{median(drives, way, 'rate') / 1e9:.2f}"
        each = ", ".join(f"{count:.1f}" for count in in_flight(drives, way))
        plain[f"{way}, reads in flight on each, of {DEPTH}"] = each
    if "nvme_vram" not in samples:
        plain["not measured: nvme_vram"] = "the module nvstream is not built (make setup-lab)"
    show(f"our queues beside fio and over four drives, medians of {rounds}", ratios, BARS, plain)
    write("nvme", {**ratios, "plain": plain, "rounds": {**samples, **drives}})


if __name__ == "__main__":
    main()
