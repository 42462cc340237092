"""Does a probe notice bytes that are wrong or never came, and does it leave nothing behind?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.arena import Arena
from nvdma.errors import BackendUnavailable, ReadError
from nvdma.nvme.spec import READ
from nvdma.pci.dma import DmaMemory
from nvdma.types import Source
from nvstreamd.doctor.probe import probe_file, probe_scratch, probe_source
from nvstreamd.doctor.probe_drive import probe_access, probe_claimed
from nvstreamd.doctor.scratch import nearest, trials
from nvstreamd.errors import InvalidRequest, NotFound
from nvstreamd.hardware.held import held_drive
from support.nvme_access import ScriptedAccess
from support.nvme_device import ScriptedDevice
from support.nvme_script import Effect, Rule
from unit.nvdma.rig import pattern

MIB = 1 << 20
PATHS = ("pread", "uring")


@pytest.mark.parametrize("size", [1, 4097, MIB, 17 * MIB + 3])
def test_a_file_of_any_size_is_read_to_its_last_byte_through_each_path(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(pattern(size))
    found = probe_file(PATHS, path)
    assert [(each.path, each.nbytes, each.compared, each.reason) for each in found] == [
        ("pread", size, "uring", None), ("uring", size, "pread", None)]
    assert all(each.bytes_per_second > 0 and each.what == str(path) for each in found)


def test_of_a_large_file_the_first_64_mib_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(100 * MIB)
    assert [each.nbytes for each in probe_file(PATHS, path)] == [64 * MIB, 64 * MIB]


class Exchanging(tuple[str, ...]):
    """Paths; when all were opened the descriptor that some of them share becomes another file's."""

    swap: tuple[int, int]

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        os.dup2(*self.swap, inheritable=False)


def test_paths_that_bring_different_bytes_both_fail(tmp_path: Path) -> None:
    """io_uring has registered the file by then, preadv has not."""
    right, wrong = pattern(20 * MIB, 1), bytearray(pattern(20 * MIB, 1))
    wrong[18 * MIB + 5] ^= 1
    (tmp_path / "right").write_bytes(right)
    (tmp_path / "wrong").write_bytes(wrong)
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / name).open("rb")) for name in ("right", "wrong")]
        paths = Exchanging(PATHS)
        paths.swap = (files[1].fileno(), files[0].fileno())
        found = probe_source(paths, Source(files[0].fileno(), "a file", len(right)))
    assert [each.path for each in found] == list(PATHS)
    for each in found:
        assert each.reason is not None and "pread and uring differ within bytes 16777216 to" in each.reason.reason


def test_a_file_that_shrinks_is_said_and_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(pattern(MIB))
    with path.open("rb") as file:
        found = probe_source(PATHS, Source(file.fileno(), str(path), 2 * MIB))
    assert all(each.reason is not None and "truncated" in each.reason.remedy for each in found)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name in ("pipe", "empty", "."):
        with pytest.raises(InvalidRequest, match="no regular file, or empty"):
            probe_file(PATHS, tmp_path / name)
    with pytest.raises(NotFound, match="missing"):
        probe_file(PATHS, tmp_path / "missing")


def test_a_scratch_file_lies_nearest_to_the_store_and_leaves_no_trace(tmp_path: Path) -> None:
    store = tmp_path / "not/yet/there"
    assert nearest(store) == tmp_path
    found = probe_scratch(PATHS, store)
    assert [each.reason for each in found] == [None, None] and str(tmp_path) in found[0].what
    assert trials(store).pread.reason is None
    assert not list(tmp_path.iterdir())


def test_where_nothing_may_be_written_it_is_said_and_reading_still_tried() -> None:
    store = Path("/proc/nvstreamd")
    found = trials(store)
    assert found.pread.reason is None and found.ring.reason is None
    assert found.store.reason is not None and "no scratch file can be written in /proc" in found.store.reason.reason
    assert "`store`" in found.store.reason.remedy
    assert all(each.reason is not None for each in probe_scratch(PATHS, store))


def drive(nbytes: int = 4 * MIB) -> ScriptedDevice:
    return ScriptedDevice({1: pattern(nbytes)})


def test_a_drive_of_ours_is_read_twice_and_measured() -> None:
    device = drive()
    found = probe_access(ScriptedAccess(device), "0000:01:00.0 (LAB0)", 4 * MIB)
    assert found.reason is None and found.nbytes == 4 * MIB and found.bytes_per_second > 0
    assert not device.violations and not device.bus.faults and not device.is_running()


class Elsewhere(ScriptedAccess):
    """A function whose writes to large memory land in other memory, as where an IOMMU is set up wrongly."""

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """See Access."""
        if view.nbytes < 32 * MIB:
            return super().map_memory(view, address, stack)
        other = stack.enter_context(Arena(view.nbytes))
        return super().map_memory(other.view, other.address, stack)


def test_a_drive_that_reports_success_and_writes_nothing_is_found_out() -> None:
    """QEMU's does so for memory that it cannot reach."""
    device = drive()
    with pytest.raises(BackendUnavailable, match="differ or did not arrive"):
        probe_access(Elsewhere(device), "0000:01:00.0 (LAB0)", 4 * MIB)
    assert not device.is_running()


def test_a_drive_that_refuses_is_stopped_all_the_same() -> None:
    device = drive()
    device.script.rules.append(Rule(Effect.FAIL, READ, status=0x281))
    with pytest.raises(ReadError):
        probe_access(ScriptedAccess(device), "0000:01:00.0 (LAB0)", 4 * MIB)
    assert not device.is_running() and not device.bus.faults


@pytest.mark.parametrize("driver", ["vfio-pci", "nvstream"])
def test_a_drive_that_cannot_be_opened_is_a_reason_and_no_crash(driver: str) -> None:
    found = probe_claimed(held_drive("LAB0", "ffff:01:00.0", driver))
    assert found.reason is not None and found.reason.remedy and found.what == "ffff:01:00.0 (LAB0)"
