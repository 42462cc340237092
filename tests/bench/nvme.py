"""Do our own queues read as fast as the kernel's driver under fio? In a QEMU guest; writes build/bench/nvme.json.

The drive is emulated, without KVM: a byte costs a copy on the host whoever asks for it, and a command costs what the
guest computes for it. So the ratio tells what the paths themselves cost. fio uses io_uring with the same depth and
size; the ways take turns, forth and back, and every figure is a median. `nvme_host_msix` is `nvme_host` with
interrupts in place of polling (bench/nvme_msix.py).

    python -m bench.nvme [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import Bar, show, write
from vm.lab import MIB, ROOT, Drive, Guest, Hardware, image, missing

BARS = {"nvme_host_over_fio": Bar(1.0), "nvme_vram_over_fio": Bar(1.0)}
BOOT_SECONDS, ROUND_SECONDS = 120, 60


def measure(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The samples of a guest, by the way the bytes went. Exits with the guest's words when it failed."""
    drives = (Drive("LAB0", image(folder / "drive0", 256 * MIB, filled=256 * MIB), 0x10, "mdts=8"),
              Drive("LAB1", image(folder / "drive1", 8 * MIB), 0x11))
    guest = Guest(folder, Hardware(drives, image(folder / "bar", 64 * MIB)))
    job = f"PYTHONPATH=tests {ROOT}/.venv/bin/python -m bench.nvme_guest {rounds} {folder}/samples.json"
    result = guest.run(job, BOOT_SECONDS + ROUND_SECONDS * (rounds + 1))
    if result.status != 0 or result.faults:
        sys.exit(f"bench-nvme: the guest failed:\n{result}")
    found: dict[str, list[dict[str, float]]] = json.loads((folder / "samples.json").read_text())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.nvme", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    reason = missing()
    if reason:
        sys.exit(f"bench-nvme: no guest can be booted here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(Path(folder), rounds)

    def median(way: str, figure: str) -> float:
        return statistics.median(sample[figure] for sample in samples[way])

    ratios = {f"{way}_over_fio": median(way, "rate") / median("fio", "rate") for way in samples if way != "fio"}
    plain = {f"{way}, GB/s": f"{median(way, 'rate') / 1e9:.2f}" for way in samples}
    plain |= {f"{way}, CPU seconds a GB": f"{median(way, 'cpu_seconds_a_gb'):.2f}" for way in samples}
    if "nvme_vram" not in samples:
        plain["not measured: nvme_vram"] = "the module nvstream is not built (make setup-lab)"
    show(f"our queues beside fio, medians of {rounds}", ratios, BARS, plain)
    write("nvme", {**ratios, "plain": plain, "rounds": samples})


if __name__ == "__main__":
    main()
