"""How fast does a model answer of which a card's memory holds a part, with the rest in RAM? Beside llama.cpp.

`tiered`: 69B in Q4_0, 20 GB of VRAM for weights, keys and values; llama.cpp has 38 of its 80 layers there, and the
processor computes the others. `experts`: 30B-A3B's shape in Q4_0, all of it in VRAM, and with a third of its experts
there; llama.cpp has the experts of two layers in three on the processor. Weights are random, so are routes: each expert
is as likely as any other, which is the least that a cache of experts can gain by.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_resident import PEER, THREADS, VOCABULARY, Ours
from bench.peers import Peer, asked
from bench.report import Bar
from nvdma.gpu.driver import Driver
from nvstreamd import ggml
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Wishes, load_by
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.gpu_units import Compiler
from nvstreamd.kernels.hybrid_device import HybridDevice
from nvstreamd.kernels.select import Kernels, beside_a_card
from nvstreamd.weights.packed.files import open_all
from support.random_gguf import Options, write
from support.shapes import SHAPE_30B_A3B, SHAPE_70B, Shape
from support.vocabularies import synthetic_vocabulary

MIB = 1 << 20
SEQUENCES = 32
# What rests in RAM comes with use: a model has this long for it.
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A model of `shape` with `vram` bytes, 0 for all; how llama.cpp has it; what is asked, and what that is called.

    Of `decode` are users and tokens each; one prompt has `prefill` tokens. `judged` are keys by users, or by -1 of the
    prompt. Nothing is measured before `settling` passes in a row have read nothing.
    """

    shape: Shape
    vram: int
    kv: int
    theirs: str
    decode: tuple[tuple[int, int], ...]
    prefill: int
    judged: Mapping[int, str]
    settling: int = 20


TIERED = Case(SHAPE_70B["llama"], 20 * 10**9, 1280 * MIB, "layers=38", ((1, 10), (8, 6), (32, 4)), 512, {
    1: "tiered_70b_decode_ratio", 8: "tiered_70b_eight_users_ratio", 32: "tiered_70b_32_users_ratio",
    -1: "tiered_70b_prefill_ratio"})
MOE = SHAPE_30B_A3B["qwen3moe"]
DECODE = ((1, 64), (8, 32), (32, 16))
RESIDENT = Case(MOE, 0, 1024 * MIB, "default", DECODE, 512, {
    1: "gpu_moe_resident_ratio", 8: "gpu_moe_resident_eight_users_ratio", 32: "gpu_moe_resident_32_users_ratio",
    -1: "gpu_moe_resident_prefill_ratio"})
THIRD = Case(MOE, 7000 * MIB, 1024 * MIB, f"cpu-experts={MOE.layers * 2 // 3}", DECODE, 512, {
    1: "gpu_moe_tiered_ratio", 8: "gpu_moe_tiered_eight_users_ratio", 32: "gpu_moe_tiered_32_users_ratio",
    -1: "gpu_moe_tiered_prefill_ratio"})
TIERED_BARS = {"tiered_70b_decode_ratio": Bar(2.0), "tiered_70b_eight_users_ratio": Bar(4.0),
               "tiered_70b_32_users_ratio": Bar(8.0), "tiered_70b_prefill_ratio": Bar(1.0),
               "tiered_pass_over_bound": Bar(1.10, most=True), "prediction_error": Bar(0.15, most=True)}
EXPERTS_BARS = {"gpu_moe_resident_ratio": Bar(1.0), "gpu_moe_tiered_ratio": Bar(1.3)}
Measured = tuple[dict[str, float], dict[str, str]]


def open_ours(path: Path, case: Case, driver: Driver, compiler: Compiler, stack: ExitStack) -> Ours:
    """The model on a card with the processor beside it, and all of RAM that it wants."""
    model = read_model(open_all([path], stack))
    size = path.stat().st_size
    library = CpuLibrary()

    def pick(_: Sequence[str], own: ExitStack) -> Kernels:
        context = CpuContext(library, library.best(), beside_a_card(THREADS))
        context.open(own)
        return Kernels(HybridDevice(GpuDevice(driver, compiler, own, case.vram), CpuDevice(context)), ())

    wishes = Wishes(size + case.kv, size, case.kv, SEQUENCES, ("uring", "pread"), ("gpu",), THREADS)
    return Ours(load_by(pick, model, wishes, stack, None))


def settle(ours: Ours, passes: int) -> None:
    """Passes until so many in a row have read nothing: experts rest where they may. All else does from the start on."""
    if ours.loaded.flow.experts is None:
        return
    began, seen = time.monotonic(), -1
    while (now := ours.loaded.flow.counters.streamed_bytes) != seen and time.monotonic() - began < SETTLE_SECONDS:
        seen = now
        ours.decode(1, passes)


def rates_of(case: Case, decode: Callable[[int, int], float], prefill: Callable[[int], float], rounds: int
             ) -> dict[int, float]:
    """Tokens a second by users, of the prompt by -1: medians."""
    found: dict[int, list[float]] = {}
    for _ in range(rounds):
        for users, tokens in case.decode:
            found.setdefault(users, []).append(decode(users, tokens))
        found.setdefault(-1, []).append(prefill(case.prefill))
    return {key: statistics.median(values) for key, values in found.items()}


def of_ours(path: Path, case: Case, driver: Driver, compiler: Compiler, rounds: int, plain: dict[str, str]
            ) -> tuple[dict[int, float], dict[str, float]]:
    """Our rates, and how far a pass of one row is from what was expected and from what the hardware gives."""
    with ExitStack() as stack:
        ours = open_ours(path, case, driver, compiler, stack)
        settle(ours, case.settling)
        for users, _ in case.decode:
            ours.decode(users, 4)  # graphs are made
        ours.prefill(case.prefill)
        found = rates_of(case, ours.decode, ours.prefill, rounds)
        plan, expected = ours.loaded.plan, ours.loaded.expectation
        own = ours.loaded.flow.own
        assert own is not None
        if len(plan.tiers) == 1 or plan.experts is not None:
            return found, {}
        # Both at once, each as fast as it is beside the other: no division of the work is faster.
        bound = plan.tiers[0].moved / max(expected.host_rate + expected.link_beside_host, expected.link or 0.0)
        plain["a pass of one user"] = (f"expected {plan.predicted_seconds * 1e3:.1f} ms, took {1e3 / found[1]:.1f}, "
                                       f"bound {bound * 1e3:.1f}: {plan.tiers[0].moved / 1e9:.1f} GB outside VRAM")
        plain["rates"] = (f"link {(expected.link or 0) / 1e9:.1f} GB/s, processor {expected.host_rate / 1e9:.1f} and "
                          f"link {expected.link_beside_host / 1e9:.1f} at once")
        return found, {"tiered_pass_over_bound": 1.0 / found[1] / bound,
                       "prediction_error": abs(plan.predicted_seconds * found[1] - 1.0)}


def of_theirs(path: Path, case: Case, rounds: int) -> dict[int, float]:
    """llama.cpp's rates; none where no program is named."""
    program = os.environ.get(PEER)
    if program is None:
        return {}
    with asked([program, str(path), str(THREADS), case.theirs]) as peer:
        peer.answer()  # it says what it is
        return rates_of(case, lambda users, tokens: _decode(peer, users, tokens),
                        lambda tokens: peer.rate(f"prefill {tokens}"), rounds)


def _decode(peer: Peer, users: int, tokens: int) -> float:
    return peer.rate(f"decode {users} {tokens}")


def measure_case(path: Path, case: Case, driver: Driver, compiler: Compiler, rounds: int) -> Measured:
    """One side after the other: both want all of RAM."""
    plain: dict[str, str] = {}
    own, ratios = of_ours(path, case, driver, compiler, rounds, plain)
    theirs = of_theirs(path, case, rounds)
    for key, rate in own.items():
        what = f"prompt of {case.prefill}" if key < 0 else f"users: {key}"
        beside = f", llama.cpp ({case.theirs}) {theirs[key]:.1f}" if theirs else f"; {PEER} names no peer"
        plain[f"{case.judged[1]}, {what}, tokens/s"] = f"ours {rate:.1f}{beside}"
        if theirs:
            ratios[case.judged[key]] = rate / theirs[key]
    return ratios, plain


def _measure(cases: Sequence[Case], driver: Driver, compiler: Compiler, rounds: int) -> Measured:
    """Cases of one shape, and so of one file."""
    ratios: dict[str, float] = {}
    plain: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = Options(type=ggml.Q4_0, vocabulary=synthetic_vocabulary(VOCABULARY))
        (path,) = write(Path(folder) / "model.gguf", cases[0].shape, options)
        for case in cases:
            found, lines = measure_case(path, case, driver, compiler, rounds)
            ratios |= found
            plain |= lines
    return ratios, plain


def tiered(driver: Driver, compiler: Compiler, rounds: int) -> Measured:
    """A dense model."""
    return _measure([TIERED], driver, compiler, rounds)


def experts(driver: Driver, compiler: Compiler, rounds: int) -> Measured:
    """A mixture of experts."""
    return _measure([RESIDENT, THIRD], driver, compiler, rounds)
