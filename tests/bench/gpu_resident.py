"""How fast does a model that lies wholly in VRAM answer? Our engine's passes, beside a llama.cpp built for the card.

The model is a random one of 7.2B in Q4_0. Passes are the engine's own, without the daemon: rows in, scores out. The
peer is tests/bench/llamacpp_peer.cpp, linked to a llama.cpp with GGML_CUDA; $NVSTREAM_CUDA_PEER names the program.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.peers import Peer, asked
from bench.report import Bar
from nvdma.gpu.driver import Driver
from nvstreamd import ggml
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Loaded, Wishes, load_by
from nvstreamd.engine.scheduler import Work
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.gpu_units import Compiler
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.kernels.select import Kernels
from nvstreamd.weights.packed.files import open_all
from support.our_logits import sequence
from support.random_gguf import Options, write
from support.shapes import SHAPE_8B, Shape
from support.vocabularies import synthetic_vocabulary

PEER = "NVSTREAM_CUDA_PEER"
MIB = 1 << 20
KV, SEQUENCES, THREADS = 4096 * MIB, 32, len(os.sched_getaffinity(0))
VOCABULARY = 49152
# Users and the tokens that each makes; the prompt of each is 3 tokens, as the peer's.
DECODE = ((1, 128), (8, 64), (32, 48))
PREFILL = (512, 4096)
PROMPT = 3
NAMES = {1: "gpu_decode_ratio", 8: "gpu_eight_users_ratio", 32: "gpu_32_users_ratio", 512: "gpu_prefill_512_ratio",
         4096: "gpu_prefill_4096_ratio"}
BARS = {"gpu_decode_ratio": Bar(1.1), "gpu_eight_users_ratio": Bar(1.5), "gpu_32_users_ratio": Bar(2.0),
        "gpu_prefill_512_ratio": Bar(1.0), "gpu_prefill_4096_ratio": Bar(1.0)}


class Ours:
    """A model in VRAM; rates are tokens a second."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def decode(self, users: int, tokens: int) -> float:
        """So many users at once, a token each a pass."""
        pages = -(-(PROMPT + tokens) // PAGE_TOKENS)
        asked = [sequence(self.loaded, [1 + user, 2, 3], range(user * pages, (user + 1) * pages))
                 for user in range(users)]
        self.loaded.runner.run([Work(each, 0, PROMPT) for each in asked])
        seconds = []
        for _ in range(tokens - 1):
            for each in asked:
                each.tokens.append(5)
            began = time.perf_counter()
            self.loaded.runner.run([Work(each, len(each.tokens) - 1, 1) for each in asked])
            seconds.append(time.perf_counter() - began)
        return users / statistics.mean(seconds[1:])

    def prefill(self, tokens: int) -> float:
        """One prompt in one pass."""
        asked = sequence(self.loaded, [1 + token % 100 for token in range(tokens)], range(-(-tokens // PAGE_TOKENS)))
        began = time.perf_counter()
        self.loaded.runner.run([Work(asked, 0, tokens)])
        return tokens / (time.perf_counter() - began)


def open_ours(path: Path, driver: Driver, compiler: Compiler, stack: ExitStack) -> Ours:
    """The model, all of it in VRAM."""
    model = read_model(open_all([path], stack))
    size = path.stat().st_size

    def pick(_: Sequence[str], own: ExitStack) -> Kernels:
        return Kernels(GpuDevice(driver, compiler, own), ())

    wishes = Wishes(size + KV, size, KV, SEQUENCES, ("uring", "pread"), ("gpu",), THREADS)
    return Ours(load_by(pick, model, wishes, stack, None))


def rates(ours: Ours, peer: Peer | None, decode: Sequence[tuple[int, int]], prefill: Sequence[int], rounds: int
          ) -> dict[int, tuple[float, float]]:
    """By users, or tokens of a prompt: our tokens a second and the peer's, 0 without one; medians of turns taken."""
    found: dict[int, tuple[list[float], list[float]]] = {}
    for number in range(rounds + 1):
        for users, tokens in decode:
            theirs = peer.rate(f"decode {users} {tokens}") if peer else 0.0
            _note(found, users, ours.decode(users, tokens), theirs, warm=number > 0)
        for tokens in prefill:
            theirs = peer.rate(f"prefill {tokens}") if peer else 0.0
            _note(found, tokens, ours.prefill(tokens), theirs, warm=number > 0)
    return {key: (statistics.median(own), statistics.median(theirs)) for key, (own, theirs) in found.items()}


def _note(found: dict[int, tuple[list[float], list[float]]], key: int, own: float, theirs: float, *,
          warm: bool) -> None:
    if warm:
        sides = found.setdefault(key, ([], []))
        sides[0].append(own)
        sides[1].append(theirs)


def measure(driver: Driver, compiler: Compiler, rounds: int, shape: Shape = SHAPE_8B["llama"]
            ) -> tuple[dict[str, float], dict[str, str]]:
    """Ratios where there is a peer, and the rates."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = Options(type=ggml.Q4_0, vocabulary=synthetic_vocabulary(VOCABULARY))
        (path,) = write(folder / "model.gguf", shape, options)
        ours = open_ours(path, driver, compiler, stack)
        program = os.environ.get(PEER)
        peer = stack.enter_context(asked([program, str(path), str(THREADS), "default"])) if program else None
        if peer is not None:
            peer.answer()  # it says what it is
        found = rates(ours, peer, DECODE, PREFILL, rounds)
    plain = {}
    for key, (own, theirs) in found.items():
        what = "prompt of" if key in PREFILL else "users:"
        plain[f"{what} {key}, tokens/s"] = f"ours {own:.0f}" + (f", llama.cpp {theirs:.0f}" if theirs else "")
    plain["beside"] = program or f"nothing: {PEER} names no peer"
    return {NAMES[key]: own / theirs for key, (own, theirs) in found.items() if theirs}, plain
