"""Does a model on drives answer as from its file, whatever becomes of engine and drive? Are they given back?"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.daemon import DEADLINE, Daemon
from vm.guest.machine import DEVICES, answer_to_bars
from vm.guest.served import (
    addresses,
    answer,
    answer_of_file,
    configure,
    daemon_of,
    drivers,
    import_packed,
    is_unprivileged,
    make_source,
    placement,
)


@pytest.fixture(scope="module")
def source() -> Path:
    """Removed with the guest."""
    return make_source(Path(os.environ["TMPDIR"]) / "models")


@pytest.fixture(scope="module")
def daemon(source: Path) -> Iterator[Daemon]:
    with daemon_of(configure(source)) as started:
        yield started


@pytest.fixture(scope="module")
def budget(daemon: Daemon, source: Path) -> int:
    return import_packed(daemon, source)


@pytest.fixture(scope="module")
def expected(daemon: Daemon, budget: int) -> list[int]:
    return answer_of_file(daemon, budget)


def test_a_model_on_drives_outlives_engine_and_drive(daemon: Daemon, budget: int, expected: Sequence[int]) -> None:
    """One load, for a start takes its time here: undisturbed, an engine killed, a drive that answers no more."""
    model = daemon.load("packed", budget)
    assert model.placement.backend == "nvme_host" and model.placement.streamed_bytes_per_pass, model.placement
    assert drivers() == ["vfio-pci", "vfio-pci"] and is_unprivileged(daemon.engine("packed").pid)
    assert answer(daemon) == expected
    assert answer(daemon, lambda: os.kill(daemon.engine("packed").pid, signal.SIGKILL)) == expected
    assert placement(daemon).backend == "nvme_host"
    # Its registers answer no more, as those of a drive that was pulled out.
    assert answer(daemon, lambda: answer_to_bars(addresses()["LAB1"], 0)) == expected
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
