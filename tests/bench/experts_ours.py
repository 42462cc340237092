"""How fast is our engine on given token ids? The peer of llamacpp_peer.cpp: a command a line in, a line of JSON out.

    python -m bench.experts_ours MODEL THREADS WEIGHTS KV        bytes of memory for weights and for the KV cache
        forced warm|cold FILE           as llamacpp_peer.cpp has it, and with the same meaning
        forced_prefill warm|cold FILE
        raw                             bytes a second of the drive alone, beside no pass
        routes FILE                     writes the routes of all passes so far (support.expert_replay), and forgets them

It is the daemon's engine but for the wire: one pass after the other, prompts in the chunks that pacing chooses. As in
llama.cpp's peer the likeliest token is looked for, though another follows. A side that is a process of its own can
live in a memory cgroup of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nvdma.arena import Arena
from nvdma.bandwidth import measure
from nvdma.select import probe
from nvdma.types import Source
from nvstreamd.engine.cost import PassCost
from nvstreamd.engine.describe import ModelFile, read_model
from nvstreamd.engine.load import DEPTH, Loaded, Wishes, load, placement_message
from nvstreamd.engine.measure import BLOCK
from nvstreamd.engine.routed import Routed
from nvstreamd.engine.scheduler import Work
from nvstreamd.errors import NvstreamError
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.weights.packed.files import open_all
from support import expert_replay
from support.expert_replay import Need
from support.our_logits import first_pages, sequence

SEQUENCES = 8
RAW_SECONDS = 1.0
BACKENDS = ("uring", "pread")
# A pass that waits for longer than this part of its time is bound by what it misses.
BOUND = 0.5
Ids = Sequence[Sequence[int]]


def read_ids(path: Path) -> list[list[int]]:
    """The token ids of a file, a sequence a line."""
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()]


def write_ids(path: Path, ids: Ids) -> None:
    """What both peers read."""
    path.write_text("".join(" ".join(map(str, each)) + "\n" for each in ids))


class Recorder:
    """The routes of passes, taken down with no more work in the pass than a copy."""

    def __init__(self) -> None:
        self._passes: list[list[tuple[int, npt.NDArray[np.int32]]]] = []

    def begin(self) -> None:
        """A pass begins."""
        self._passes.append([])

    def routed(self, layer: int, experts: npt.NDArray[np.int32]) -> None:
        """Rows [rows, top] of a layer go to these experts."""
        self._passes[-1].append((layer, experts.copy()))

    def take(self) -> list[list[Need]]:
        """The needs of all passes so far, by layer; they are forgotten here."""
        taken, self._passes = self._passes, []
        return [needs_of(each) for each in taken]


def needs_of(routed: Sequence[tuple[int, npt.NDArray[np.int32]]]) -> list[Need]:
    """{expert: rows} of each layer of a pass; the rows of a layer may come in several parts."""
    counts: list[Counter[int]] = [Counter() for _ in range(1 + max((layer for layer, _ in routed), default=-1))]
    for layer, experts in routed:
        counts[layer].update(experts.reshape(-1).tolist())
    return list(counts)


@dataclass(slots=True)
class Tally:
    """Passes of a command, and those that misses bound: their number, bytes off the drive, seconds of reads, seconds.

    Reads of a pass are those since the pass before: of an engine that reads ahead, too.
    """

    passes: int = 0
    waited_seconds: float = 0.0
    bound: int = 0
    bound_bytes: int = 0
    bound_read_seconds: float = 0.0
    bound_seconds: float = 0.0

    def saw(self, cost: PassCost) -> None:
        """One more pass."""
        self.passes += 1
        self.waited_seconds += cost.waited_seconds
        if cost.waited_seconds > BOUND * cost.seconds:
            self.bound += 1
            self.bound_bytes += cost.read_bytes
            self.bound_read_seconds += cost.read_seconds
            self.bound_seconds += cost.seconds

    def answer(self) -> dict[str, float]:
        """Its fields."""
        return {name: getattr(self, name) for name in Tally.__slots__}


@dataclass(slots=True)
class Session:
    """A model in service, and what was asked of it last."""

    model: ModelFile
    loaded: Loaded
    recorder: Recorder = field(default_factory=Recorder)
    tally: Tally = field(default_factory=Tally)
    last: tuple[str, int, int] | None = None

    def facts(self) -> dict[str, object]:
        """What status says of it, and how many experts there is room for (0: it has none)."""
        placement, experts = placement_message(self.loaded), self.loaded.flow.experts
        return {"backend": placement.backend, "kernel": placement.kernel, "slots": experts.slots if experts else 0,
                "read_rate": self.loaded.expectation.read.value}

    def run(self, command: str, heat: str, ids: Ids) -> dict[str, object]:
        """Tokens and seconds, and of all passes of the command, before those that are timed, too: what was missed."""
        if heat not in ("warm", "cold"):
            raise ValueError(f"{heat}: neither warm nor cold")
        before, called, self.tally = self._counted(), (command, len(ids), len(ids[0])), Tally()
        if heat == "cold":
            self._forced([each[:1] for each in ids])
        elif called != self.last:
            self._once(command, ids)
        self.last = called
        tokens, seconds = self._once(command, ids)
        after = self._counted()
        cache = {name: (np.asarray(after[name]) - np.asarray(before[name])).tolist() for name in after}
        return {"tokens": tokens, "seconds": seconds, **cache, **self.tally.answer()}

    def _counted(self) -> dict[str, object]:
        flow = self.loaded.flow
        counted: dict[str, object] = {"streamed_bytes": flow.counters.streamed_bytes}
        if flow.experts is not None:
            counters = flow.experts.counters
            counted |= {"hits": list(counters.hits), "misses": list(counters.misses),
                        "missed_bytes": counters.missed_bytes}
        return counted

    def _once(self, command: str, ids: Ids) -> tuple[int, float]:
        return self._forced(ids) if command == "forced" else self._prefill(ids[0])

    def _forced(self, ids: Ids) -> tuple[int, float]:
        """A step for each id of all sequences together; all but the first are timed."""
        pages = -(-len(ids[0]) // PAGE_TOKENS)
        self._check_room(pages * len(ids))
        rows = [sequence(self.loaded, each[:1], first_pages(len(each), number * pages))
                for number, each in enumerate(ids)]
        self._pass([Work(request, 0, 1) for request in rows], decode=True)
        began = time.perf_counter()
        for step in range(1, len(ids[0])):
            for request, each in zip(rows, ids, strict=True):
                request.tokens.append(each[step])
            self._pass([Work(request, step, 1) for request in rows], decode=True)
        return len(ids) * (len(ids[0]) - 1), time.perf_counter() - began

    def _prefill(self, ids: Sequence[int]) -> tuple[int, float]:
        """One prompt, and the scores behind its last token."""
        self._check_room(-(-len(ids) // PAGE_TOKENS))
        request, pacing, done = sequence(self.loaded, ids, first_pages(len(ids))), self.loaded.pacing(None, 0), 0
        began = time.perf_counter()
        while done < len(ids):
            count = min(len(ids) - done, pacing.tokens(0))
            self._pass([Work(request, done, count)], decode=False)
            done += count
        return len(ids), time.perf_counter() - began

    def _check_room(self, pages: int) -> None:
        if pages > min(self.loaded.pages):
            raise ValueError(f"{pages} pages of the KV cache are needed, there are {self.loaded.pages}")

    def _pass(self, work: Sequence[Work], *, decode: bool) -> None:
        self.recorder.begin()
        computed = self.loaded.runner.run(work)
        self.loaded.expectation.saw(computed.cost, decode=decode)
        self.tally.saw(computed.cost)
        for scores in computed.scores:
            scores.argmax()

    def raw(self) -> dict[str, float]:
        """The drive alone over the whole file, in this process: the same way to read, the same blocks and depth."""
        with ExitStack() as stack:
            sources = [Source(file.fd, file.path, file.size) for file in self.model.data]
            arena = stack.enter_context(Arena(BLOCK * DEPTH))
            backend = probe([self.loaded.selection.backend.facts.name], sources, arena, DEPTH).backend
            stack.callback(backend.close)
            found = measure(backend, sources, arena, BLOCK, DEPTH, seconds=RAW_SECONDS)
            return {"bytes_per_second": found.bytes_per_second}

    def obey(self, line: str) -> dict[str, Any]:
        """The answer to a command."""
        name, _, rest = line.strip().partition(" ")
        if name == "raw":
            return {**self.raw()}
        if name == "routes":
            routes = self.recorder.take()
            expert_replay.save(Path(rest), routes)
            return {"passes": len(routes)}
        if name not in ("forced", "forced_prefill"):
            raise ValueError(f"{name}: not a command")
        heat, _, path = rest.partition(" ")
        return self.run(name, heat, read_ids(Path(path)))


def serve(model: ModelFile, wishes: Wishes, stack: ExitStack) -> None:
    """Answers until standard input ends."""
    session = Session(model, load(model, wishes, stack))
    routed = session.loaded.runner.routed
    if isinstance(routed, Routed):
        routed.on_route = session.recorder.routed
    print(json.dumps(session.facts()), flush=True)
    for line in sys.stdin:
        print(json.dumps(session.obey(line)), flush=True)


def main() -> int:
    """Exit status 0, or 1 after an error, which is told."""
    path, threads, weights, kv = sys.argv[1], *map(int, sys.argv[2:])
    wishes = Wishes(weights + kv, weights, kv, SEQUENCES, BACKENDS, ("cpu",), threads)
    try:
        with ExitStack() as stack:
            serve(read_model(open_all([Path(path)], stack)), wishes, stack)
    except (NvstreamError, ValueError) as error:
        sys.stderr.write(f"experts_ours: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
