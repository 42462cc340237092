"""Is it heard that a drive has come, also when the kernel says more than can be kept?"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from pathlib import Path

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.system import System
from nvstreamd.hardware.uevents import Uevents
from vm.guest.machine import SECONDS, block_device, controllers, give_back, hold_no_more

FLOOD = 100


@pytest.fixture
def drive() -> PciAddress:
    found = controllers()["LAB0"]
    block_device(found)
    return found


@pytest.fixture
def heard(drive: PciAddress) -> Uevents:
    """From now on."""
    return System().uevents()


def say(disk: str, action: str) -> None:
    """Has the kernel say something of a disk (Documentation/ABI/testing/sysfs-uevent)."""
    Path(f"/sys/class/block/{disk}/uevent").write_text(action)


def is_heard_soon(heard: Uevents) -> bool:
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        select.select([heard], [], [], left)
        if heard.disk_came():
            return True
    return False


def test_a_drive_that_comes_is_heard_and_one_that_goes_is_not(drive: PciAddress, heard: Uevents) -> None:
    hold_no_more(drive)
    assert not heard.disk_came()
    give_back(drive)
    assert is_heard_soon(heard) and not heard.disk_came()


def test_other_disks_and_other_news_of_ours_are_no_arrival(drive: PciAddress, heard: Uevents) -> None:
    say(block_device(drive).name, "change")
    subprocess.run(["modprobe", "loop"], check=True)
    assert Path("/sys/class/block/loop0").exists()
    assert not heard.disk_came()
    subprocess.run(["modprobe", "-r", "loop"], check=True)


def test_when_the_kernel_said_too_much_a_drive_may_have_come(drive: PciAddress, heard: Uevents) -> None:
    disk = block_device(drive).name
    with socket.socket(fileno=os.dup(heard.fileno())) as same:
        # The least there is. As root libudev takes so much that it is never full.
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(FLOOD):
        say(disk, "change")
    assert heard.disk_came()
    assert any(not heard.disk_came() for _ in range(FLOOD)), "what is over is heard for ever"
    say(disk, "add")
    assert heard.disk_came() and not heard.disk_came()
