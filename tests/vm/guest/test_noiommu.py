"""Without an IOMMU: is a drive used only where that is allowed, is it said, and is it given back as with one?"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.guest.commands import nvstreamd
from vm.guest.labmodules import NVSTREAM, loaded, missing
from vm.guest.machine import DEVICES, first_bytes
from vm.guest.served import (
    addresses,
    answer,
    configure,
    daemon_of,
    drivers,
    import_packed,
    is_unprivileged,
    make_source,
    placement,
)

ALLOWED = "unsafe_noiommu = true"
# Documentation/admin-guide/tainted-kernels.rst: "taint requested by userspace application".
TAINT_USER = 1 << 6

pytestmark = pytest.mark.skipif(missing(), reason="NOT TESTED: drives without an IOMMU, no kernel headers")


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    with loaded(NVSTREAM):
        yield


@pytest.fixture(scope="module")
def source() -> Path:
    """Removed with the guest."""
    return make_source(Path(os.environ["TMPDIR"]) / "models")


def tainted() -> bool:
    return bool(int(Path("/proc/sys/kernel/tainted").read_text()) & TAINT_USER)


def test_a_drive_is_refused_before_that_is_allowed(source: Path) -> None:
    refused = nvstreamd("claim", "LAB0", "--config", configure(source))
    assert refused.status == 1 and "is in no IOMMU group" in refused.output, refused
    assert drivers() == ["nvme", "nvme"] and not tainted()


def test_the_commands_take_a_drive_read_it_and_give_it_back(source: Path) -> None:
    config, before = ("--config", configure(source, ALLOWED)), first_bytes(addresses()["LAB0"], 1 << 20)
    claimed = nvstreamd("claim", "LAB0", *config)
    assert claimed.status == 0 and "can read and write all of this machine's memory" in claimed.output, claimed
    assert drivers() == ["nvstream", "nvme"]
    found = json.loads(nvstreamd("doctor", "--json", "--probe", *config).output)
    (path,) = (each for each in found["paths"] if each["path"] == "nvme_host")
    notes = [note["reason"] for check in path["checks"] for note in check["notes"]]
    assert path["state"] == "available" and any("without an IOMMU" in note for note in notes), path
    (probed,) = (each for each in found["probes"] if each["path"] == "nvme_host")
    assert probed["reason"] is None and probed["nbytes"], probed
    assert nvstreamd("release", "LAB0", *config).status == 0
    assert drivers() == ["nvme", "nvme"] and first_bytes(addresses()["LAB0"], 1 << 20) == before
    assert tainted(), "the kernel does not know that its memory was open to a process"


def test_a_model_on_drives_outlives_its_engine_and_a_drive_that_is_pulled_out(source: Path) -> None:
    with daemon_of(configure(source, ALLOWED)) as daemon:
        budget = import_packed(daemon, source)
        found = daemon.load("packed", budget).placement
        assert found.backend == "nvme_host" and found.streamed_bytes_per_pass, found
        for serial in ("LAB0", "LAB1"):
            assert any(note.startswith(f"drive {serial}: no IOMMU") for note in found.notes), found.notes
        assert drivers() == ["nvstream", "nvstream"] and is_unprivileged(daemon.engine("packed").pid)
        expected = answer(daemon)
        assert answer(daemon, lambda: os.kill(daemon.engine("packed").pid, signal.SIGKILL)) == expected
        assert placement(daemon).backend == "nvme_host"
        # Of two drives one is there: the rest of the answer comes from the file that was imported.
        assert answer(daemon, pull) == expected
        assert placement(daemon).backend in ("uring", "pread")
        daemon.unload("packed")
        Path("/sys/bus/pci/rescan").write_text("1")
        daemon.wait("the kernel to have both drives again", lambda: drivers() == ["nvme", "nvme"])


def pull() -> None:
    """The module stops the drive and takes its registers from the engine, which is driving it."""
    (DEVICES / str(addresses()["LAB1"]) / "remove").write_text("1")
