"""How does a bench hand in its figures? A table on the terminal, the same keys in build/bench/NAME.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Column, Table

from support.files import ROOT

HOME = ROOT / "build/bench"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio must reach: at least `value` or, with `most`, at most."""

    value: float
    most: bool = False

    def holds(self, figure: float) -> bool:
        """Whether the figure is good enough."""
        return figure <= self.value if self.most else figure >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.most else '>='} {self.value:.2f}"


def cpu_name() -> str:
    """The processor as the kernel names it."""
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(name: str, figures: Mapping[str, object]) -> None:
    """build/bench/NAME.json: the figures, when and on what they were taken."""
    HOME.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}
    content = {"taken": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, **figures}
    (HOME / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def show(title: str, ratios: Mapping[str, float], bars: Mapping[str, Bar], plain: Mapping[str, str]) -> None:
    """Prints ratios beside their bars, then figures that have none."""
    table = Table(Column("figure", no_wrap=True), "value", "bar", "", title=title)
    for key, ratio in ratios.items():
        bar = bars.get(key)
        verdict = "" if bar is None else "ok" if bar.holds(ratio) else "MISSED"
        table.add_row(key, f"{ratio:.3f}", str(bar or ""), verdict)
    table.add_section()
    for key, text in plain.items():
        table.add_row(key, text)
    Console().print(table)
