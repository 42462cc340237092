"""Does a model on whole drives, imported and loaded through the daemon, answer like its GGUF?"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import models_pb2 as models
from nvstream.v1.models_pb2 import Placement
from support.daemon import DEADLINE, Collected, Daemon, running_on
from support.machines import load_blank
from support.shapes import tiny
from unit.weights.models import make

MIB = 1 << 20
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
PROMPT = [1, 5, 9, 2]
DRIVES = ["LAB0", "LAB1"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's machine, both drives blank; files stand in for their block devices."""
    root = tmp_path_factory.mktemp("machine")
    load_blank(root, 64 * MIB)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few MiB."""
    return make(tmp_path_factory.mktemp("models") / "plain.gguf", tiny(width=256, layers=3))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, machine: Path, source: Path) -> Iterator[Daemon]:
    """A daemon on that machine; its configuration names both drives."""
    directory = tmp_path_factory.mktemp("daemon")
    config = directory / "nvstreamd.toml"
    named = "".join(f'[[drives]]\nserial = "{serial}"\n' for serial in DRIVES)
    config.write_text(f'claims = "{directory}/claims"\nmodel_directories = ["{source.parent}"]\n'
                      f"{named}")
    with running_on(machine, directory, "--config", str(config)) as started:
        yield started


def start(daemon: Daemon, source: Path, **request: object) -> list[models.ImportResponse]:
    message = models.ImportRequest(source=str(source), **request)  # type: ignore[arg-type]
    return list(daemon.models.Import(message, timeout=DEADLINE))


def answer(daemon: Daemon, name: str, budget: int, backend: str) -> list[int]:
    model = daemon.load(name, budget, backend)
    try:
        assert model.placement.backend == backend and model.placement.streamed_bytes_per_pass
        found = daemon.generate(name, PROMPT, max_tokens=12, ignore_eos=True, speculation=False)
        assert len(found.ids) == 12 and found.finished
        return found.ids
    finally:
        daemon.unload(name)


@pytest.fixture(scope="module")
def imported(daemon: Daemon, source: Path) -> models.Model:
    """The model on both drives."""
    events = start(daemon, source, name="packed", devices=DRIVES)
    assert events[-2].progress.bytes_done == events[-2].progress.bytes_total
    return events[-1].imported


def smallest(daemon: Daemon, *names: str) -> int:
    """A budget that suffices for each of them."""
    return max(daemon.models.Get(models.GetRequest(model=name), timeout=DEADLINE).model.facts.minimum_budget
               for name in names)


@pytest.mark.parametrize("backend", ["uring", "pread"])
def test_the_tokens_are_those_of_the_gguf(daemon: Daemon, source: Path, imported: models.Model, backend: str) -> None:
    budget = smallest(daemon, "plain", "packed")
    assert imported.facts.format == models.MODEL_FORMAT_PACKED
    assert answer(daemon, "packed", budget, backend) == answer(daemon, "plain", budget, backend)


def test_its_weights_are_on_both_drives_and_nowhere_else(daemon: Daemon, imported: models.Model) -> None:
    home = Path(imported.path)
    assert sorted(path.name for path in home.iterdir()) == ["header.gguf", "manifest.json"]
    stored = json.loads((home / "manifest.json").read_text())
    assert [part["serial"] for part in stored["parts"]] == DRIVES and min(stored["part_bytes"]) > MIB
    described = daemon.models.Get(models.GetRequest(model="packed"), timeout=DEADLINE).model.facts
    assert described == imported.facts


def disturbed(daemon: Daemon, name: str, budget: int, disturb: Callable[[], None]) -> tuple[list[int], Placement]:
    """The tokens of a stream that something happens to after the first of them, and what it ran on at the end."""
    daemon.load(name, budget)
    try:
        stream, result = daemon.open(name, PROMPT, max_tokens=12, ignore_eos=True, speculation=False), Collected()
        while not result.ids:
            result.take(next(stream))
        disturb()
        for event in stream:
            result.take(event)
        return result.ids, daemon.engine(name).model.placement
    finally:
        daemon.unload(name)


def test_an_engine_that_dies_is_replaced_on_the_same_drives(daemon: Daemon, imported: models.Model) -> None:
    budget = imported.facts.minimum_budget
    undisturbed = answer(daemon, "packed", budget, "uring")
    found, placement = disturbed(daemon, "packed", budget,
                                 lambda: os.kill(daemon.engine("packed").pid, signal.SIGKILL))
    assert found == undisturbed and placement.backend == "uring"


def test_drives_that_cannot_be_taken_are_read_by_the_kernel_and_status_says_why(daemon: Daemon,
                                                                               imported: models.Model) -> None:
    placement = daemon.load("packed", imported.facts.minimum_budget).placement
    daemon.unload("packed")
    assert placement.backend == "uring"
    assert any(note.startswith("nvme_host given up: modprobe vfio-pci failed") for note in placement.notes)
    with pytest.raises(grpc.RpcError) as error:
        daemon.load("packed", imported.facts.minimum_budget, "nvme_host")
    daemon.unload("packed")
    assert error.value.code() == PRECONDITION and "modprobe vfio-pci failed" in str(error.value.details())


def test_a_model_in_a_file_cannot_be_loaded_as_one_on_drives(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as error:
        daemon.load("plain", smallest(daemon, "plain"), "nvme_host")
    daemon.unload("plain")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "--device" in str(error.value.details())


def test_a_budget_that_is_too_small_is_so_whatever_the_way(daemon: Daemon, imported: models.Model) -> None:
    with pytest.raises(grpc.RpcError) as error:
        daemon.load("packed", 4096)
    failed = daemon.engine("packed").model
    daemon.unload("packed")
    assert error.value.code() == PRECONDITION and "budget" in str(error.value.details()), failed


def test_a_stream_whose_drive_is_lost_goes_on_from_the_file(daemon: Daemon, source: Path, machine: Path) -> None:
    """The same file, that is: one that changed since the import is no answer."""
    start(daemon, source, name="lost", devices=["LAB0"])
    budget, disk = smallest(daemon, "plain", "lost"), machine / "dev/nvme0n1"
    expected, content = answer(daemon, "plain", budget, "uring"), disk.read_bytes()

    def lose() -> None:
        with disk.open("r+b") as file:
            file.write(bytes(8192))

    try:
        found, placement = disturbed(daemon, "lost", budget, lose)
        assert found == expected
        assert any("kernel's driver given up" in note and "LAB0" in note for note in placement.notes), placement.notes
        facts, weights = source.stat(), source.read_bytes()
        os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        daemon.load("lost", budget)
        daemon.unload("lost")
        with source.open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"\1" * 4096)
        with pytest.raises(grpc.RpcError) as error:
            daemon.load("lost", budget)
        daemon.unload("lost")
        with source.open("r+b") as file:
            file.write(weights)
        os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert "not the file any more that the model was imported from" in str(error.value.details())
    finally:
        disk.write_bytes(content)


@pytest.mark.parametrize(("request_fields", "code", "words"), [
    ({"devices": ["SECRET"]}, PRECONDITION, "no [[drives]] entry of the configuration names serial"),
    ({"devices": ["LAB0", "LAB0"]}, grpc.StatusCode.INVALID_ARGUMENT, "twice"),
    ({"devices": ["LAB0"], "directories": ["/tmp"]}, grpc.StatusCode.INVALID_ARGUMENT, "both"),
])
def test_an_import_that_may_not_be_says_why(daemon: Daemon, source: Path, request_fields: dict[str, list[str]],
                                            code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        start(daemon, source, name="refused", **request_fields)
    assert error.value.code() == code and words in str(error.value.details())


def test_a_drive_with_something_on_it_is_left_alone(daemon: Daemon, source: Path, machine: Path,
                                                    imported: models.Model) -> None:
    """Signatures are looked for at every import, not once."""
    told = machine / "answers/blkid/nvme1n1"
    disk = machine / "dev/nvme1n1"
    before = disk.read_bytes()
    told.write_text("0\nTYPE=ext4\nUSAGE=filesystem\n")
    try:
        with pytest.raises(grpc.RpcError) as error:
            start(daemon, source, name="refused", devices=DRIVES)
    finally:
        told.write_text("2\n")
    assert error.value.code() == PRECONDITION and "ext4 filesystem" in str(error.value.details())
    assert disk.read_bytes() == before


def test_another_drive_of_that_serial_is_noticed(daemon: Daemon, source: Path, machine: Path) -> None:
    start(daemon, source, name="swapped", devices=["LAB0"])
    disk = machine / "dev/nvme0n1"
    content = disk.read_bytes()
    with disk.open("r+b") as file:
        file.write(bytes(8192))
    try:
        with pytest.raises(grpc.RpcError) as error:
            daemon.models.Get(models.GetRequest(model="swapped"), timeout=DEADLINE)
    finally:
        disk.write_bytes(content)
    assert error.value.code() == PRECONDITION and "LAB0" in str(error.value.details())
    assert "import the model again" in str(error.value.details())
