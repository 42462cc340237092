"""How would a plan and a policy have served passes that an engine once ran? Recorded passes in, seconds and bytes out.

    NVSTREAM_TRACE=t.json python -m nvstreamd.engine.by_hand MODEL.gguf --budget MIB ...
    python -m support.replay t-PID.json > tests/fixtures/passes/NAME.json

records passes: with the smallest budget, so that every key is read and its bytes are in the trace. Time is simulated: a
tier is filled by one move at a time, and the device multiplies one key at a time.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.plan import Plan
from nvstreamd.weights.flow.policy import Cache, Move


@dataclass(frozen=True, slots=True)
class Recorded:
    """Bytes of each key, and for each pass its keys in order with the seconds that each was multiplied."""

    sizes: dict[Key, int]
    passes: list[list[tuple[Key, float]]]

    @property
    def uses(self) -> list[Key]:
        """Every key that was needed, one after the other."""
        return [key for each in self.passes for key, _ in each]

    @property
    def compute(self) -> float:
        """Seconds of all products."""
        return sum(seconds for each in self.passes for _, seconds in each)


@dataclass(frozen=True, slots=True)
class Replayed:
    """Seconds of all passes, and the bytes that were moved into each tier."""

    seconds: float
    moved: tuple[int, ...]


def key_of(name: str) -> Key:
    """The key of a name in a trace."""
    kind, number = name.split(".")
    return Key(Kind(kind), int(number))


def load(path: Path) -> Recorded:
    """What `condensed` wrote."""
    found = json.loads(path.read_text())
    sizes = {key_of(name): size for name, size in found["sizes"].items()}
    keys = list(sizes)
    return Recorded(sizes, [[(keys[number], micros / 1e6) for number, micros in each] for each in found["passes"]])


def condensed(trace: Path) -> str:
    """The passes of a trace: sizes by key, and of each pass [number of the key, microseconds]."""
    text = trace.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("]") else text + "]")
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    sizes: dict[str, int] = {}
    for event in spans:
        if tracks[event["tid"]] == "drive":
            sizes.setdefault(event["name"].removeprefix("read "), event["args"]["bytes"])
    order = sorted(sizes, key=lambda name: (key_of(name).kind is Kind.HEAD, key_of(name).number))
    passes = [(event["ts"], event["ts"] + event["dur"]) for event in spans if tracks[event["tid"]] == "passes"]
    products = sorted((event["ts"], event["name"], event["dur"]) for event in spans if event["name"] in sizes)
    within = [[[order.index(name), round(took)] for at, name, took in products if begin <= at < end]
              for begin, end in passes]
    return json.dumps({"sizes": {name: sizes[name] for name in order}, "passes": within}, separators=(",", ":"))


def replay(recorded: Recorded, plan: Plan, rates: Sequence[float]) -> Replayed:
    """Runs the passes over the cache of a plan; `rates` are bytes a second into each tier."""
    cache = Cache([share.rests for share in plan.tiers], [share.slots for share in plan.tiers])
    # When each tier's mover is free again, and the moves under way by the time they end.
    free, under_way = [0.0] * len(rates), list[tuple[float, Move]]()
    moved, now = [0] * len(rates), 0.0

    def begin_all() -> None:
        while (move := cache.choose()) is not None:
            size = recorded.sizes[move.key]
            free[move.tier] = max(now, free[move.tier]) + size / rates[move.tier]
            moved[move.tier] += size
            under_way.append((free[move.tier], move))

    def end_until(time: float) -> None:
        """Ends the moves until then, each beginning what its end makes possible."""
        nonlocal now
        while under_way and min(under_way, key=lambda each: each[0])[0] <= time:
            ended = min(under_way, key=lambda each: each[0])
            under_way.remove(ended)
            now = max(now, ended[0])
            cache.arrived(ended[1])
            begin_all()
        now = max(now, time)

    for each in recorded.passes:
        cache.expect([key for key, _ in each])
        begin_all()
        for key, seconds in each:
            if key in plan.tiers[0].rests:
                end_until(now + seconds)
                continue
            while (slot := cache.take(key)) is None:
                assert under_way, f"{key.name} never comes"
                end_until(min(under_way, key=lambda one: one[0])[0])
            end_until(now + seconds)
            cache.release(slot)
            begin_all()
    return Replayed(now, tuple(moved))


def least_recently_used(uses: Sequence[Key], capacity: int) -> list[Key]:
    """The keys that a cache of so many keys reads, when it throws out what was used longest ago."""
    held: OrderedDict[Key, None] = OrderedDict()
    read = []
    for key in uses:
        if key not in held:
            read.append(key)
            if len(held) == capacity:
                held.popitem(last=False)
        held[key] = None
        held.move_to_end(key)
    return read


def belady(uses: Sequence[Key], capacity: int) -> list[Key]:
    """The fewest keys that any cache of so many reads: it throws out what is used last again (Belady, 1966)."""
    following: list[float] = [0.0] * len(uses)
    last: dict[Key, float] = {}
    for at in range(len(uses) - 1, -1, -1):
        following[at] = last.get(uses[at], float("inf"))
        last[uses[at]] = at
    held: dict[Key, float] = {}
    read = []
    for at, key in enumerate(uses):
        if key not in held:
            read.append(key)
            if len(held) == capacity:
                del held[max(held, key=held.__getitem__)]
        held[key] = following[at]
    return read


if __name__ == "__main__":
    sys.stdout.write(condensed(Path(sys.argv[1])) + "\n")
