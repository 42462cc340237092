"""Does the daemon tell its service manager how it is, users how it does, and does the log carry priorities?"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from nvstreamd.systemd import JOURNAL, library
from support.daemon import DEADLINE, running
from support.files import SMOLLM2

MIB = 1 << 20


def test_readiness_the_log_and_the_end_reach_a_service_manager(tmp_path: Path) -> None:
    # As systemd does it: one file for stdout and stderr, named by device and inode.
    log = tmp_path / "daemon.log"
    log.touch()
    there = os.stat(log)
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environment["NOTIFY_SOCKET"])
        manager.settimeout(DEADLINE)
        with running(tmp_path, "--model-directory", str(SMOLLM2.parent), environment=environment) as daemon:
            assert manager.recv(100) == b"READY=1"
            (way,) = [note for note in daemon.status().notes if "service manager" in note]
            daemon.load(SMOLLM2.stem, 60 * MIB)
            daemon.unload(SMOLLM2.stem)
        assert manager.recv(100) == b"STOPPING=1"
    lines = log.read_text().splitlines()
    # Where this machine has a journal and the library is installed, the daemon's own lines are there.
    is_here = isinstance(library(), str) or not Path(JOURNAL).exists()
    assert sum(way in line for line in lines) == is_here, "the log says it once"
    assert all(re.match("<[2-7]>", line) for line in lines), lines
    assert any(f"{SMOLLM2.stem}: INFO" in line for line in lines)
