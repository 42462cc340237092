"""Is a part of a BAR bounded, opened and mapped as it was asked for? On ordinary files in place of sysfs' own."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvdma.pci.window import Window, WindowRefused, map_window, open_bar

PEER = PciAddress.parse("0000:01:00.0")
PAGE = 4096
SIZE = 8 * PAGE
ANSWERING, SILENT = b"\xde\x10\x00\x20\x06\x00", b"\xde\x10\x00\x20\x05\x00"


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A folder like /sys/bus/pci/devices with one function, whose BAR 1 has another byte in each page."""
    folder = tmp_path / str(PEER)
    folder.mkdir()
    (folder / "config").write_bytes(ANSWERING.ljust(64, b"\0"))
    (folder / "resource1").write_bytes(b"".join(bytes([page + 1]) * PAGE for page in range(SIZE // PAGE)))
    return tmp_path


def mapped(path: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]


def test_a_window_is_that_part_and_is_gone_afterwards(devices: Path) -> None:
    with ExitStack() as stack:
        fd = open_bar(PEER, 1, stack, devices)
        with ExitStack() as inner:
            address = map_window(Window(PEER, 1, 2 * PAGE, 3 * PAGE), fd, inner)
            assert ctypes.string_at(address, 3 * PAGE) == b"\3" * PAGE + b"\4" * PAGE + b"\5" * PAGE
            assert mapped(devices / str(PEER) / "resource1")
        assert not mapped(devices / str(PEER) / "resource1")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(("offset", "nbytes", "why"), [
    (0, SIZE + PAGE, "are not inside"), (SIZE, PAGE, "are not inside"), (SIZE - PAGE, 2 * PAGE, "are not inside"),
    (-PAGE, PAGE, "are not inside"), (0, 0, "are not inside"), (PAGE, -PAGE, "are not inside"),
    ((1 << 64) - PAGE, 2 * PAGE, "are not inside"), (1, PAGE, "whole pages"), (0, PAGE + 1, "whole pages")])
def test_what_is_no_part_of_it_is_refused(devices: Path, offset: int, nbytes: int, why: str) -> None:
    with ExitStack() as stack:
        fd = open_bar(PEER, 1, stack, devices)
        with pytest.raises(WindowRefused, match=why):
            map_window(Window(PEER, 1, offset, nbytes), fd, stack)
        assert not mapped(devices / str(PEER) / "resource1")


def test_the_whole_of_it_is_a_part(devices: Path) -> None:
    with ExitStack() as stack:
        assert map_window(Window(PEER, 1, 0, SIZE), open_bar(PEER, 1, stack, devices), stack)


def test_a_descriptor_of_something_else_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with ExitStack() as stack, pytest.raises(WindowRefused, match="no resource file"):
            map_window(Window(PEER, 1, 0, PAGE), reading, stack)
    finally:
        os.close(reading)
        os.close(writing)


def test_the_kernels_refusal_is_told() -> None:
    """A descriptor that may only be read cannot be mapped for writing."""
    with ExitStack() as stack:
        fd = os.open(__file__, os.O_RDONLY)
        stack.callback(os.close, fd)
        with pytest.raises(WindowRefused, match="cannot be mapped: Permission denied"):
            map_window(Window(PEER, 1, 0, PAGE), fd, stack)


def test_the_write_combining_file_is_taken_where_there_is_one(devices: Path) -> None:
    combining = devices / str(PEER) / "resource1_wc"
    combining.write_bytes(bytes(2 * PAGE))
    with ExitStack() as stack:
        assert os.fstat(open_bar(PEER, 1, stack, devices)).st_ino == combining.stat().st_ino


def test_a_function_whose_memory_space_is_off_is_refused(devices: Path) -> None:
    (devices / str(PEER) / "config").write_bytes(SILENT)
    with ExitStack() as stack, pytest.raises(WindowRefused, match="does not answer"):
        open_bar(PEER, 1, stack, devices)


@pytest.mark.parametrize(("bar", "why"), [(3, "BAR 3 of 0000:01:00.0 cannot be opened"), (6, "has no BAR 6"),
                                          (-1, "has no BAR -1")])
def test_a_bar_that_is_not_there_is_refused(devices: Path, bar: int, why: str) -> None:
    with ExitStack() as stack, pytest.raises(WindowRefused, match=why):
        open_bar(PEER, bar, stack, devices)


def test_a_function_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(WindowRefused, match="cannot be asked"):
        open_bar(PEER, 1, stack, tmp_path)
