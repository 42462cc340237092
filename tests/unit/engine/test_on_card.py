"""Does an engine on a card answer to the bit as on the CPU, wherever weights rest? The card's kernels run as fibers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from nvstreamd import ggml
from nvstreamd.engine.describe import read_model
from nvstreamd.engine.expectation import Expectation, Measured
from nvstreamd.engine.load import Loaded, Wishes, load, load_by, load_on, placement_message
from nvstreamd.engine.on_card import describe, forms_of
from nvstreamd.engine.planning import NEVER, assignable, with_assignments
from nvstreamd.engine.routed import Routed
from nvstreamd.engine.scheduler import Work
from nvstreamd.errors import BadModelFile
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.gpu_open import LOADED
from nvstreamd.kernels.hybrid_device import HybridDevice
from nvstreamd.kernels.select import Kernels, choose
from nvstreamd.pieces import Kind
from nvstreamd.weights.flow.assignment import Assignment, HostRates
from nvstreamd.weights.flow.expert_plan import experts_of
from nvstreamd.weights.flow.plan import dense_of
from nvstreamd.weights.packed.files import open_all
from support.fiber_gpu import FiberCompiler, FiberDriver
from support.our_logits import first_pages, loaded, sequence
from support.random_gguf import Options, write
from support.shapes import tiny

KIB, MIB = 1 << 10, 1 << 20
TYPES = {"llama": ggml.Q4_0, "qwen3": ggml.Q8_0, "gemma3": ggml.Q5_0, "qwen3moe": ggml.Q8_0}
THOROUGH = pytest.mark.thorough
PROMPT = np.random.default_rng(4).integers(0, 256, 45).tolist()


@pytest.fixture(scope="module", params=["llama", *(pytest.param(family, marks=pytest.mark.thorough)
                                                for family in sorted(TYPES) if family != "llama")])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "model.gguf"
    write(path, tiny(request.param, layers=9), Options(type=TYPES[request.param]))
    return path


@contextmanager
def on_card(path: Path, vram: float, host: float, *, beside: bool = False, experts: float = 1.0,
            experts_here: float = 0.0) -> Iterator[Loaded]:
    """The model on a card that has room for that part of its weights, and host memory for that part.

    The processor may be `beside` it. There is room for parts of the experts in VRAM, and in host memory.
    """
    driver = FiberDriver()
    with ExitStack() as stack:
        card = GpuDevice(driver, FiberCompiler(), stack)
        processor = choose(("cpu",), 2, stack).device
        assert isinstance(processor, CpuDevice)
        device = HybridDevice(card, processor) if beside else card
        model = read_model(open_all([path], stack))
        weights = model.manifest.sizes
        forms = forms_of(model.manifest, device.own)
        kv = 2 * MIB
        dense, of_experts = dense_of(forms).values(), sum(experts_of(forms).values())
        device.own.ceiling = kv + int(experts * of_experts) + max(2 * max(dense), int(vram * sum(dense)))
        # Room for the constants, and for what is read while what was read before is on its way.
        least = model.manifest.constants.nbytes + 3 * max(weights.values())
        room = max(least, int(host * sum(dense_of(weights).values())))
        room += int(experts_here * sum(experts_of(weights).values()))
        wishes = Wishes(0, room, kv, 1, ("pread",), (), 1)
        yield load_on(Kernels(device, ()), model, wishes, stack, None)
    assert driver.used == 0 and not driver.registered


def picking(driver: FiberDriver) -> Callable[[Sequence[str], ExitStack], Kernels]:
    """Kernels by what is wanted, a card's on fibers."""

    def pick(wanted: Sequence[str], stack: ExitStack) -> Kernels:
        if wanted[0] != "gpu":
            return choose(wanted, 1, stack)
        device = GpuDevice(driver, FiberCompiler(), stack)
        device.own.ceiling = 64 * MIB
        return Kernels(device, ())

    return pick


def test_a_card_that_has_no_room_leaves_the_model_to_the_processor(file: Path) -> None:
    """What is too small is told in the log and in status; nothing of the card stays taken."""
    driver = FiberDriver()
    for room in (1 << 10, 256 * KIB, 700 * KIB):
        driver.memory = room
        with ExitStack() as stack:
            model = read_model(open_all([file], stack))
            wishes = Wishes(64 * MIB, 32 * MIB, 4 * MIB, 1, ("pread",), ("gpu", "cpu"), 1)
            found = load_by(picking(driver), model, wishes, stack, None)
            assert found.flow.own is None and driver.used == 0 and not driver.registered
            assert any(note.startswith("gpu kernels given up: ") for note in placement_message(found).notes)
            assert np.isfinite(logits(found)[-1]).all()


def test_experts_that_no_kernel_of_a_card_takes_leave_the_model_to_the_processor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny("qwen3moe"), Options(type=ggml.F16))
    with ExitStack() as stack:
        wishes = Wishes(64 * MIB, 32 * MIB, 4 * MIB, 1, ("pread",), ("gpu", "cpu"), 1)
        found = load_by(picking(FiberDriver()), read_model(open_all([path], stack)), wishes, stack, None)
        assert found.flow.own is None and found.flow.experts is not None
        assert any("not in blocks" in note for note in placement_message(found).notes)


def test_without_cupy_the_processor_computes_and_says_why(file: Path) -> None:
    if find_spec("cupy") is not None:
        pytest.skip("NOT TESTED: cupy is installed")
    with ExitStack() as stack:
        model = read_model(open_all([file], stack))
        found = load(model, Wishes(64 * MIB, 32 * MIB, 4 * MIB, 1, ("pread",), ("gpu", "cpu"), 1), stack)
        notes = [note for note in placement_message(found).notes if note.startswith("gpu kernels refused: ")]
        assert len(notes) == 1 and ("cupy is missing" in notes[0]) == LOADED.exists()


def logits(model: Loaded) -> list[Floats]:
    """Those of the last token of a prompt in two chunks, and of two more tokens, one by one."""
    own = sequence(model, [*PROMPT, 7, 9], first_pages(len(PROMPT) + 2))
    found = []
    for begin, count in ((0, 20), (20, 25), (45, 1), (46, 1)):
        own.tokens = [*PROMPT, 7, 9][: begin + count]
        found.append(model.runner.run([Work(own, begin, count)]).scores)
    return found


@pytest.mark.parametrize(("vram", "host"), [
    pytest.param(2.0, 0.0, id="all in VRAM"), pytest.param(0.8, 0.0, id="the rest streams"),
    *(pytest.param(*each, id=name, marks=THOROUGH) for each, name in (
        ((0.8, 2.0), "the rest in RAM"), ((0.0, 2.0), "all in RAM"), ((0.0, 0.0), "all streams")))])
def test_the_bits_are_the_cpus_wherever_weights_rest(file: Path, vram: float, host: float) -> None:
    with loaded([file]) as on_cpu:
        wanted = logits(on_cpu)
    with on_card(file, vram, host) as model:
        found = logits(model)
        assert all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(found, wanted, strict=True))
        streams = model.flow.counters.streamed_bytes > 0
        assert streams == (host < 1 and vram < 1)
        assert (model.flow.counters.brought_bytes > 0) == (vram < 1)
        placed = placement_message(model)
        assert any(note.startswith("VRAM: ") for note in placed.notes)
        assert placed.vram_resident_bytes <= placed.vram and (placed.vram_resident_bytes > 0 or vram == 0)
        assert placed.resident_bytes + placed.slot_bytes <= placed.budget and placed.link_bytes_per_second > 0


@pytest.mark.parametrize(("narrow", "wide"), [
    pytest.param(0.5, 0.0, id="half of it in narrow passes"),
    *(pytest.param(*each, id=name, marks=THOROUGH) for each, name in (
        ((1.0, 1.0), "all by the processor"), ((0.5, 1.0), "half of it, all in wide ones")))])
def test_the_bits_are_the_cpus_whoever_multiplies(file: Path, narrow: float, wide: float) -> None:
    """Layers that rest in RAM are multiplied there, or brought, by the rows of a pass."""
    with loaded([file]) as on_cpu:
        wanted = logits(on_cpu)
    with on_card(file, 0.5, 2.0, beside=True) as model:
        routes = assignable(model.runner.model, model.flow.plan)
        if not routes:
            assert any(stage.experts for stage in model.runner.model.stages)
            return
        sizes = model.runner.manifest.sizes
        model.flow.plan = replace(model.flow.plan, assignments=tuple(
            Assignment(rows, frozenset(chosen), sum(sizes[key] for key in chosen))
            for rows, part in ((4, narrow), (32, wide)) for chosen in [routes[: round(part * len(routes))]]))
        found = logits(model)
        assert all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(found, wanted, strict=True))
        of_one, of_many = (model.flow.plan.assigned(rows).nbytes for rows in (1, 20))
        assert of_one > 0 and model.flow.counters.host_bytes == 2 * of_one + 2 * of_many


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture") / "model.gguf"
    write(path, tiny("qwen3moe", layers=4), Options(type=ggml.Q8_0))
    return path


@pytest.mark.parametrize("many", [
    pytest.param(3, id="those of three rows are brought"), pytest.param(1, id="all are", marks=THOROUGH),
    pytest.param(NEVER, id="none is", marks=THOROUGH)])
@pytest.mark.parametrize(("near", "here"), [
    pytest.param(0.4, 0.4, id="some in VRAM, the rest streams"),
    *(pytest.param(*each, id=name, marks=THOROUGH) for each, name in (
        ((0.0, 2.0), "all in RAM"), ((0.4, 2.0), "some in VRAM, too"), ((0.0, 0.4), "some in RAM")))])
def test_the_bits_are_the_cpus_wherever_experts_lie(mixture: Path, near: float, here: float, many: int) -> None:
    """Those in VRAM are run there, those in RAM by the processor, others are brought, or come off the drive."""
    with loaded([mixture]) as on_cpu:
        wanted = [*logits(on_cpu), *logits(on_cpu)]
    with on_card(mixture, 1.3, 0.0, beside=True, experts=near, experts_here=here) as model:
        experts, plan = model.flow.experts, model.flow.plan
        assert experts is not None and (plan.near is not None) == (near > 0) and isinstance(model.runner.routed, Routed)
        if experts.near is not None:
            experts.near.many = many
        found = [*logits(model), *logits(model)]
        assert all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(found, wanted, strict=True))
        # What these tokens want has come by now, and stays where there is room for it.
        missed = experts.counters.missed_bytes
        logits(model)
        assert (experts.counters.missed_bytes > missed) == (here < 1)
        # What is used most comes to the card by and by, whatever the link does for passes.
        for _ in range(20):
            if near == 0.0 or experts.counters.near:
                break
            logits(model)
        assert (model.flow.counters.brought_bytes > 0) == (experts.counters.near > 0) == (near > 0)
        assert any("of RAM for those that the processor multiplies" in note for note in placement_message(model).notes)


def test_status_usage_and_predictions_tell_what_the_processor_multiplies(file: Path) -> None:
    with on_card(file, 0.5, 2.0, beside=True) as model:
        card = {kind: {1: 1e9, 32: 1e9} for kind in Kind}
        measured = Measured(1e9, 1e6, card, HostRates({1: 2e6, 32: 1e3}, {1: 1e6, 32: 1e6}))
        plan = with_assignments(model.runner.model, model.runner.manifest, model.plan, measured)
        found, model.flow.plan = plan.assigned(1), plan
        if not assignable(model.runner.model, plan):
            assert not found.nbytes
            return
        assert found.nbytes and not plan.assigned(32).nbytes and not plan.assigned(33).nbytes
        told = replace(model, plan=plan, expectation=Expectation(measured))
        placed = placement_message(told)
        assert placed.host_bytes_per_pass == found.nbytes and placed.host_bytes_per_second == 2e6
        assert placed.link_bytes_per_pass == plan.tiers[0].moved - found.nbytes
        assert f"MiB for up to {found.rows} rows" in describe(plan, model.flow.own, model.runner.device.host)[-1]
        cost = model.runner.run([Work(sequence(model, PROMPT[:1], first_pages(1)), 0, 1)]).cost
        assert cost.on_host is not None and cost.on_host.nbytes == found.nbytes and cost.on_host.seconds > 0
        assert cost.brought_bytes == placed.link_bytes_per_pass
        assert cost.resident_bytes == found.nbytes + cost.brought_bytes
        assert told.expectation.expected(cost) == pytest.approx(plan.predicted_seconds, rel=0.02)


def test_a_pass_over_a_model_that_rests_in_vram_is_one_graph(file: Path) -> None:
    """Nobody waits in it: nor for which experts are wanted."""
    with on_card(file, 1.0, 0.0) as model:
        driver = model.runner.device.driver  # type: ignore[attr-defined]
        assert len(model.plan.tiers) == 1
        logits(model)
        before = driver.graphs_run
        logits(model)
        # Four passes of at most 64 rows; the first two want other scores than the last two.
        assert driver.graphs_run - before == 4


def test_what_a_request_used_says_where_it_lay(file: Path) -> None:
    with on_card(file, 0.95, 2.0) as model:
        own = sequence(model, PROMPT, first_pages(len(PROMPT)))
        cost = model.runner.run([Work(own, 0, len(PROMPT))]).cost
        weights = sum(segment.nbytes for key, segment in model.flow.segments.items() if key.kind is not Kind.EXPERT)
        assert cost.own_bytes + cost.brought_bytes >= weights and cost.own_bytes > 0
        assert cost.streamed_bytes == 0 and cost.resident_bytes == cost.brought_bytes


def test_weights_that_are_nan_are_named_where_they_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny("llama", layers=3), Options(type=ggml.Q8_0))
    with ExitStack() as stack:
        model = read_model(open_all([path], stack))
        placed = next(each for segment in model.manifest.segments for each in segment.tensors
                      if "ffn_up" in each.slice.tensor)
        segment = next(each for each in model.manifest.segments if placed in each.tensors)
    at = segment.extents[0].offset + placed.offset - segment.extents[0].target
    with path.open("r+b") as damaged:
        damaged.seek(at)
        damaged.write(b"\xff\x7f" * 8)
    with on_card(path, 0.0, 2.0) as found, pytest.raises(BadModelFile, match="ffn_up"):
        logits(found)
    with on_card(path, 2.0, 0.0) as found, pytest.raises(BadModelFile, match="overflow"):
        logits(found)
