"""Does a model on drives answer as from its file where the kernel has iommufd alone, and are its drives given back?"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from support.daemon import DEADLINE
from vm.guest.machine import DEVICES
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


def test_a_model_outlives_its_engine_and_a_drive_that_the_kernel_wants_back() -> None:
    # As on a kernel without containers.
    Path("/dev/vfio/vfio").unlink()
    source = make_source(Path(os.environ["TMPDIR"]) / "models")
    home = DEVICES / str(addresses()["LAB1"])
    remover = threading.Thread(target=lambda: (home / "remove").write_text("1"))
    with daemon_of(configure(source)) as daemon:
        budget = import_packed(daemon, source)
        expected = answer_of_file(daemon, budget)
        found = daemon.load("packed", budget).placement
        assert found.backend == "nvme_host" and found.streamed_bytes_per_pass, found
        assert any(note.startswith("drive LAB0: through iommufd") for note in found.notes), found.notes
        assert drivers() == ["vfio-pci", "vfio-pci"] and is_unprivileged(daemon.engine("packed").pid)
        assert answer(daemon) == expected
        assert answer(daemon, lambda: os.kill(daemon.engine("packed").pid, signal.SIGKILL)) == expected
        assert placement(daemon).backend == "nvme_host"
        assert answer(daemon, remover.start) == expected
        remover.join(DEADLINE)
        assert not remover.is_alive() and not home.exists(), "the kernel still waits for the drive"
        assert any("wants drive LAB1 back" in note for note in placement(daemon).notes)
        daemon.unload("packed")
        Path("/sys/bus/pci/rescan").write_text("1")
        daemon.wait("the kernel to have both drives again", lambda: drivers() == ["nvme", "nvme"])
