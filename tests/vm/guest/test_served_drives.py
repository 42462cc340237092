"""Does a model on drives answer as from its file, whatever becomes of engine and drive? Are they given back?"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvstream.v1 import models_pb2 as models
from support.daemon import DEADLINE, Collected, Daemon, running
from support.random_gguf import tiny
from unit.weights.models import look, make
from vm.guest.machine import DEVICES, controllers, driver, let_everybody_run_python

SERIALS = ["LAB0", "LAB1"]
PROMPT = [1, 5, 9, 2]
TOKENS = 16
MEMORY_SPACE = 1 << 1
COMMAND = 4


@pytest.fixture(scope="module")
def source() -> Path:
    """A model of a few MiB, where the engine's user may read it; removed with the guest."""
    folder = Path(os.environ["TMPDIR"]) / "models"
    folder.mkdir(mode=0o755)
    let_everybody_run_python(folder)
    return make(folder / "plain.gguf", tiny(width=256, layers=3))


@pytest.fixture(scope="module")
def configuration(source: Path) -> Path:
    """Names both drives; engines run as nobody."""
    path = source.with_name("nvstreamd.toml")
    named = "".join(f'[[drives]]\nserial = "{serial}"\n' for serial in SERIALS)
    path.write_text(f'claims = "{path.parent}/claims"\nmodel_directories = ["{source.parent}"]\n'
                    f'engine_user = "nobody"\n{named}')
    return path


@contextmanager
def daemon_of(configuration: Path) -> Iterator[Daemon]:
    folder = configuration.with_name("daemon")
    folder.mkdir(exist_ok=True)
    log = folder / "daemon.log"
    if not log.is_symlink():
        # Where the host finds it, also when the guest hangs.
        log.symlink_to(Path(os.environ["LAB"]) / "daemon.log")
    # The engine, which is nobody, packs into the store.
    store = folder / "store"
    store.mkdir(exist_ok=True)
    os.chown(store, 65534, 65534)
    with running(folder, "--config", str(configuration)) as started:
        yield started


@pytest.fixture(scope="module")
def daemon(configuration: Path) -> Iterator[Daemon]:
    assert drivers() == ["nvme", "nvme"]
    with daemon_of(configuration) as started:
        yield started
    assert drivers() == ["nvme", "nvme"], "the daemon has ended and its drives are elsewhere"


@pytest.fixture(scope="module")
def budget(daemon: Daemon, source: Path) -> int:
    """Imports the model onto both drives, as `packed`; the budget suffices for that and for its GGUF, and for no more.

    No engine is asked what the GGUF needs: a start of one takes ten seconds here.
    """
    request = models.ImportRequest(source=str(source), name="packed", devices=SERIALS)
    *_, last = daemon.models.Import(request, timeout=DEADLINE)
    return max(last.imported.facts.minimum_budget, look(source).minimum_budget)


@pytest.fixture(scope="module")
def expected(daemon: Daemon, budget: int) -> list[int]:
    """What the GGUF answers."""
    daemon.load("plain", budget)
    try:
        return daemon.generate("plain", PROMPT, max_tokens=TOKENS, ignore_eos=True).ids
    finally:
        daemon.unload("plain")


@cache
def addresses() -> dict[str, PciAddress]:
    """Of both drives, also while the kernel's driver does not know them: asked first when it does."""
    return controllers()


def drivers() -> list[str | None]:
    return [driver(addresses()[serial]) for serial in SERIALS]


def answer(daemon: Daemon, disturb: Callable[[], None] = lambda: None) -> list[int]:
    """The tokens; what disturbs comes after the first of them."""
    result, stream = Collected(), daemon.open("packed", PROMPT, max_tokens=TOKENS, ignore_eos=True)
    while not result.ids:
        result.take(next(stream))
    disturb()
    for event in stream:
        result.take(event)
    assert result.finished
    return result.ids


def placement(daemon: Daemon) -> models.Placement:
    return daemon.engine("packed").model.placement


def switch_off(address: PciAddress) -> None:
    """Its registers answer no more, as those of a drive that was pulled out."""
    with (DEVICES / str(address) / "config").open("r+b", buffering=0) as space:
        space.seek(COMMAND)
        word = int.from_bytes(space.read(2), "little")
        space.seek(COMMAND)
        space.write((word & ~MEMORY_SPACE).to_bytes(2, "little"))


def test_a_model_on_drives_outlives_engine_and_drive(daemon: Daemon, budget: int, expected: Sequence[int]) -> None:
    """One load, for a start takes its time here: undisturbed, an engine killed, a drive that answers no more."""
    model = daemon.load("packed", budget)
    assert model.placement.backend == "nvme_host" and model.placement.streamed_bytes_per_pass, model.placement
    assert drivers() == ["vfio-pci", "vfio-pci"]
    status = Path(f"/proc/{daemon.engine('packed').pid}/status").read_text()
    assert "Uid:\t65534\t65534" in status and "CapEff:\t0000000000000000" in status
    assert answer(daemon) == expected
    assert answer(daemon, lambda: os.kill(daemon.engine("packed").pid, signal.SIGKILL)) == expected
    assert placement(daemon).backend == "nvme_host"
    assert answer(daemon, lambda: switch_off(addresses()["LAB1"])) == expected
    found = placement(daemon)
    assert found.backend in ("uring", "pread")
    assert any(note.startswith("nvme_host given up: ") and "LAB1" in note for note in found.notes), found.notes
    assert drivers() == ["nvme", "nvme"], "the kernel reads the drives, also the one that did not answer"
    daemon.unload("packed")


def test_a_drive_that_the_kernel_wants_back_is_let_go_and_the_stream_goes_on(daemon: Daemon, budget: int,
                                                                            expected: Sequence[int]) -> None:
    """As when somebody presses the button of a hot-plug slot: the kernel waits until nobody has it open."""
    home = DEVICES / str(addresses()["LAB1"])
    remover = threading.Thread(target=lambda: (home / "remove").write_text("1"))
    daemon.load("packed", budget)
    try:
        assert answer(daemon, remover.start) == expected
        remover.join(DEADLINE)
        assert not remover.is_alive() and not home.exists(), "the kernel still waits for the drive"
        notes = placement(daemon).notes
        assert any("wants drive LAB1 back" in note for note in notes), notes
    finally:
        daemon.unload("packed")
        Path("/sys/bus/pci/rescan").write_text("1")
    daemon.wait("the kernel to have both drives again", lambda: drivers() == ["nvme", "nvme"])
