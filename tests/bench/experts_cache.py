"""What did our cache of experts do, beside the best that there could be, and how busy did it keep the drive?

Caches of the replay begin empty, and hits of ours count from the first pass behind the load: both meet the same routes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from support.expert_replay import BEST, POLICIES, Routes, load, replay

# Fewer passes than this say nothing of a drive.
LEAST_BOUND = 10


@dataclass(slots=True)
class Cached:
    """Of one law, an entry a round: hit rates of ours and of each policy on the routes that it had; the drive's rates.

    `hits` and `misses` are those of the last round, by layer; `half_wanted` are the experts of a layer, the median over
    layers, to whom half of its needs went: what shows the law.
    """

    ours: list[float] = field(default_factory=list)
    policies: dict[str, list[float]] = field(default_factory=dict)
    hits: list[int] = field(default_factory=list)
    misses: list[int] = field(default_factory=list)
    bytes_a_token: list[float] = field(default_factory=list)
    fraction_of_raw: list[float] = field(default_factory=list)
    fraction_of_raw_in_all: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    slots: int = 0
    half_wanted: float = 0.0
    doubts: list[str] = field(default_factory=list)

    def saw(self, answer: Mapping[str, Any]) -> None:
        """Takes in a round: ours' answer to a decode by one user, `slots`, its `routes`, and the drive's rate `raw`."""
        slots, raw = int(answer["slots"]), float(answer["raw"])
        self.slots, self.hits, self.misses = slots, list(answer["hits"]), list(answer["misses"])
        wanted = sum(self.hits) + sum(self.misses)
        self.ours.append(sum(self.hits) / wanted)
        recorded = load(Path(answer["routes"]))
        self.half_wanted = half_wanted(recorded)
        for name, make in POLICIES.items():
            replayed = replay(recorded, slots, make)
            self.policies.setdefault(name, []).append(replayed.rate)
            if name == BEST and sum(replayed.needs) != wanted:
                self.doubts.append(f"ours counted {wanted} needs of experts, its routes have {sum(replayed.needs)}")
        self.bytes_a_token.append(answer["missed_bytes"] / answer["passes"])
        self.raw.append(raw)
        self.bound.append(answer["bound"] / answer["passes"])
        if answer["bound"] >= LEAST_BOUND:
            self.fraction_of_raw.append(answer["bound_bytes"] / answer["bound_read_seconds"] / raw)
            self.fraction_of_raw_in_all.append(answer["bound_bytes"] / answer["bound_seconds"] / raw)

    def ratios(self) -> dict[str, float]:
        """hit_rate_over_best."""
        return {"hit_rate_over_best": median(self.ours) / median(self.policies[BEST])}

    def drive(self) -> dict[str, float]:
        """drive_fraction_of_raw, where misses bound enough passes."""
        return {"drive_fraction_of_raw": median(self.fraction_of_raw)} if self.fraction_of_raw else {}

    def lines(self, law: str) -> dict[str, str]:
        """What a table says of it."""
        rates = {"ours": self.ours, **self.policies}
        by_layer = (hit / max(1, hit + miss) for hit, miss in zip(self.hits, self.misses, strict=True))
        drive = f"{median(self.raw) / 1e9:.2f} GB/s alone; misses bound {median(self.bound):.0%} of the passes"
        if self.fraction_of_raw:
            drive += f", with {median(self.fraction_of_raw_in_all):.2f} of that over all their seconds"
        lines = {
            f"hit rates, {law}": ", ".join(f"{name} {median(each):.3f}" for name, each in rates.items()),
            f"hit rate by layer, {law}": _shown(list(by_layer)),
            f"missed, {law}": f"{median(self.bytes_a_token) / 1e6:.1f} MB a token, {self.slots} slots; "
                              f"half of a layer's needs are of {self.half_wanted:.0f} experts",
            f"drive, {law}": drive,
        }
        return lines | {f"DOUBTFUL: {law}": text for text in self.doubts[-1:]}


def half_wanted(routes: Routes) -> float:
    """The fewest experts of a layer that have half of its needs: the median over layers."""
    by_layer: list[Counter[int]] = [Counter() for _ in range(max(map(len, routes), default=0))]
    for each in routes:
        for counts, need in zip(by_layer, each, strict=False):
            counts.update(need.keys())
    fewest = []
    for counts in by_layer:
        sums = accumulate(count for _, count in counts.most_common())
        fewest.append(1 + sum(2 * reached < counts.total() for reached in sums))
    return median(fewest) if fewest else 0.0


def _shown(rates: Sequence[float]) -> str:
    return " ".join(f"{rate:.2f}" for rate in rates)
