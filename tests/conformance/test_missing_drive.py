"""A drive is not there when its model is loaded. Is it served all the same, and from the drive once that comes?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from support.daemon import DEADLINE, Daemon, running_on
from support.machines import HIDDEN, UEVENTS, load_blank
from support.shapes import tiny
from unit.weights.models import make

MIB = 1 << 20
PROMPT, TOKENS = [1, 5, 9, 2], 500
# For the model on the drive and in its file, not for all of its layers.
BUDGET = "3MiB"
SLOT = "sys/bus/pci/devices/0000:00:10.0"
LACKING, REFUSED = "no NVMe drive has serial LAB0", "modprobe vfio-pci failed"
HEARD = "the kernel has a new disk"


class Slot:
    """Where the drive LAB0 is, or is not."""

    def __init__(self, machine: Path) -> None:
        self.machine = machine
        self.out = machine / "pulled"

    def pull(self) -> None:
        """Takes it out."""
        (self.machine / SLOT).rename(self.out)

    def plug(self) -> None:
        """Puts it back in; the kernel says so."""
        self.out.rename(self.machine / SLOT)
        self.say_so()

    def say_so(self) -> None:
        """The kernel says that some drive has come."""
        # For reading as well: nobody need listen.
        fd = os.open(self.machine / UEVENTS, os.O_RDWR)
        os.write(fd, b"+")
        os.close(fd)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "plain.gguf", tiny(width=256, layers=3))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("machine")
    load_blank(root, 64 * MIB)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, machine: Path, source: Path) -> Path:
    """Where a daemon finds a model that was imported onto LAB0, configured to be loaded at its start."""
    directory = tmp_path_factory.mktemp("daemon")
    config = directory / "nvstreamd.toml"
    config.write_text(f'claims = "{directory}/claims"\n[[drives]]\nserial = "LAB0"\n')
    with running_on(machine, directory, "--config", str(config)) as daemon:
        request = models.ImportRequest(source=str(source), name="packed", devices=["LAB0"])
        *_, last = daemon.models.Import(request, timeout=DEADLINE)
    with config.open("a") as file:
        file.write(f'[[models]]\nname = "packed"\npath = "{last.imported.path}"\n'
                   f'budget = "{BUDGET}"\n')
    return directory


@pytest.fixture
def slot(home: Path, machine: Path) -> Iterator[Slot]:
    """Empty until a test puts the drive in."""
    slot = Slot(machine)
    slot.pull()
    yield slot
    if not (machine / SLOT).exists():
        slot.plug()


@pytest.fixture
def daemon(slot: Slot, home: Path, machine: Path) -> Iterator[Daemon]:
    """One that starts without the drive."""
    with running_on(machine, home, "--config", str(home / "nvstreamd.toml")) as daemon:
        yield daemon


def wait_for(daemon: Daemon, state: models.ModelState.ValueType, note: str = "") -> models.Model:
    """The model, once it is in a state; one of its notes has these words."""
    def there() -> bool:
        found = daemon.models.Get(models.GetRequest(model="packed"), timeout=DEADLINE).model
        return found.state == state and note in "\n".join(found.placement.notes)

    daemon.wait(f"the model to be {models.ModelState.Name(state)} {note}", there)
    return daemon.models.Get(models.GetRequest(model="packed"), timeout=DEADLINE).model


def test_streams_move_from_the_file_to_the_drive_when_that_comes(daemon: Daemon, slot: Slot) -> None:
    wait_for(daemon, models.MODEL_STATE_SERVING, LACKING)
    expected = daemon.generate("packed", PROMPT, max_tokens=TOKENS, ignore_eos=True, speculation=False).ids
    first = daemon.engine("packed").pid
    slot.plug()

    def is_moved() -> bool:
        result = daemon.generate("packed", PROMPT, max_tokens=TOKENS, ignore_eos=True, speculation=False)
        assert result.finished and result.ids == expected
        return any(event.progress.phase == inference.PHASE_RECOVERING for event in result.events)

    daemon.wait("a stream to be moved", is_moved)
    found = wait_for(daemon, models.MODEL_STATE_SERVING, REFUSED)
    assert LACKING not in "\n".join(found.placement.notes), "it reads the drive"
    moved = daemon.engine("packed")
    assert moved.pid != first and moved.restarts == 0, "an engine that was moved was not lost"


def test_when_another_drive_comes_or_it_cannot_be_used_nothing_is_disturbed(daemon: Daemon, slot: Slot) -> None:
    wait_for(daemon, models.MODEL_STATE_SERVING, LACKING)
    engine = daemon.engine("packed").pid
    told = daemon.log.stat().st_size
    slot.say_so()
    daemon.wait("the other drive to be heard", lambda: HEARD in daemon.log.read_text()[told:])
    blank = slot.machine / "dev/nvme0n1"
    content = blank.read_bytes()
    blank.write_bytes(bytes(len(content)))
    try:
        slot.plug()
        wait_for(daemon, models.MODEL_STATE_SERVING, "carries nothing of nvstreamd's")
        assert daemon.engine("packed").pid == engine
    finally:
        blank.write_bytes(content)


def test_a_drive_is_waited_for_until_it_shows_its_namespace(daemon: Daemon, slot: Slot) -> None:
    wait_for(daemon, models.MODEL_STATE_SERVING, LACKING)
    namespace = slot.out / "nvme/nvme0/nvme0n1"
    namespace.rmdir()
    slot.plug()
    wait_for(daemon, models.MODEL_STATE_SERVING, "the kernel shows no namespace of drive LAB0")
    (slot.machine / SLOT / "nvme/nvme0/nvme0n1").mkdir()
    slot.say_so()
    wait_for(daemon, models.MODEL_STATE_SERVING, REFUSED)


def test_a_model_that_cannot_be_served_without_its_drive_is_loaded_when_that_comes(source: Path, slot: Slot, home: Path,
                                                                                  machine: Path) -> None:
    hidden = source.with_suffix(".hidden")
    source.rename(hidden)
    try:
        with running_on(machine, home, "--config", str(home / "nvstreamd.toml")) as daemon:
            assert source.name in wait_for(daemon, models.MODEL_STATE_FAILED, LACKING).error
            slot.plug()
            wait_for(daemon, models.MODEL_STATE_SERVING)
            assert daemon.generate("packed", PROMPT, max_tokens=TOKENS, ignore_eos=True, speculation=False).finished
    finally:
        hidden.rename(source)


def test_a_drive_that_comes_while_its_model_is_loaded_is_not_missed(slot: Slot, home: Path, machine: Path) -> None:
    told = (home / "daemon.log").stat().st_size
    with running_on(machine, home, "--config", str(home / "nvstreamd.toml")) as daemon:
        def has_said(words: str) -> bool:
            return words in daemon.log.read_text()[told:]

        daemon.wait("an engine for the file", lambda: has_said("kernel's driver given up") and engines(daemon))
        (engine,) = engines(daemon)
        os.kill(engine, signal.SIGSTOP)
        try:
            slot.plug()
            daemon.wait("the drive to be heard", lambda: has_said(HEARD))
        finally:
            os.kill(engine, signal.SIGCONT)
        assert LACKING not in "\n".join(wait_for(daemon, models.MODEL_STATE_SERVING, REFUSED).placement.notes)


def test_a_drive_that_comes_between_two_looks_is_used_as_if_it_had_been_there(home: Path, machine: Path) -> None:
    (machine / HIDDEN).write_text(Path(SLOT).name)
    with running_on(machine, home, "--config", str(home / "nvstreamd.toml")) as daemon:
        assert LACKING not in "\n".join(wait_for(daemon, models.MODEL_STATE_SERVING, REFUSED).placement.notes)
    assert not (machine / HIDDEN).exists(), "nobody looked"


def test_status_says_that_a_drive_is_not_noticed_where_the_kernel_is_not_heard(home: Path, machine: Path) -> None:
    (machine / UEVENTS).unlink()
    try:
        with running_on(machine, home, "--config", str(home / "nvstreamd.toml")) as daemon:
            # This machine may have another: root here need not be allowed to raise limits.
            said = [note for note in daemon.status().notes if "uevents cannot be heard" in note]
            assert len(said) == 1 and said[0].startswith("a drive that comes later is not noticed: "), said
            assert said[0] in daemon.log.read_text()
    finally:
        os.mkfifo(machine / UEVENTS)


def engines(daemon: Daemon) -> list[int]:
    """Engines of a daemon, from when they are programs of their own: until then it waits for them."""
    threads = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return [child for child in children if b"nvstreamd.engine" in Path(f"/proc/{child}/cmdline").read_bytes()]
