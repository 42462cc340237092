"""How does a test in the guest serve a model from the guest's drives, and ask it?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from nvdma.pci.address import PciAddress
from nvstream.v1 import models_pb2 as models
from support.daemon import DEADLINE, Collected, Daemon, running
from support.shapes import tiny
from unit.weights.models import look, make
from vm.guest.machine import NOBODY, controllers, driver, let_everybody_run_python

SERIALS = ["LAB0", "LAB1"]
PROMPT = [1, 5, 9, 2]
TOKENS = 16


def make_source(folder: Path) -> Path:
    """A model of a few MiB in a new folder, where the engine's user may read it."""
    folder.mkdir(mode=0o755)
    beside = folder.with_name("python")
    beside.mkdir(mode=0o755)
    let_everybody_run_python(beside)
    return make(folder / "plain.gguf", tiny(width=256, layers=3))


def configure(source: Path, more: str = "") -> Path:
    """A configuration that names both drives; engines run as nobody."""
    path = source.with_name("nvstreamd.toml")
    named = "".join(f'[[drives]]\nserial = "{serial}"\n' for serial in SERIALS)
    path.write_text(f'claims = "{path.parent}/claims"\nmodel_directories = ["{source.parent}"]\n'
                    f'engine_user = "nobody"\n{more}\n{named}')
    return path


@contextmanager
def daemon_of(configuration: Path) -> Iterator[Daemon]:
    """A daemon; it ends with the drives where they were."""
    assert drivers() == ["nvme", "nvme"]
    folder = configuration.with_name("daemon")
    folder.mkdir(exist_ok=True)
    log = folder / "daemon.log"
    if not log.is_symlink():
        # Where the host finds it, also when the guest hangs.
        log.symlink_to(Path(os.environ["LAB"]) / "daemon.log")
    # The engine, which is nobody, packs into the store.
    store = folder / "store"
    store.mkdir(exist_ok=True)
    os.chown(store, NOBODY, NOBODY)
    with running(folder, "--config", str(configuration)) as started:
        yield started
    assert drivers() == ["nvme", "nvme"], "the daemon has ended and its drives are elsewhere"


def import_packed(daemon: Daemon, source: Path) -> int:
    """Imports the model onto both drives, as `packed`; the budget suffices for that and for its GGUF, and for no more.

    No engine is asked what the GGUF needs: a start of one takes ten seconds here.
    """
    request = models.ImportRequest(source=str(source), name="packed", devices=SERIALS)
    *_, last = daemon.models.Import(request, timeout=DEADLINE)
    return max(last.imported.facts.minimum_budget, look(source).minimum_budget)


def answer_of_file(daemon: Daemon, budget: int) -> list[int]:
    """What the GGUF answers."""
    daemon.load("plain", budget)
    try:
        return daemon.generate("plain", PROMPT, max_tokens=TOKENS, ignore_eos=True, speculation=False).ids
    finally:
        daemon.unload("plain")


def answer(daemon: Daemon, disturb: Callable[[], None] = lambda: None) -> list[int]:
    """The tokens of `packed`; what disturbs comes after the first of them."""
    result, stream = Collected(), daemon.open("packed", PROMPT, max_tokens=TOKENS, ignore_eos=True, speculation=False)
    while not result.ids:
        result.take(next(stream))
    disturb()
    for event in stream:
        result.take(event)
    assert result.finished
    return result.ids


def placement(daemon: Daemon) -> models.Placement:
    """Where its bytes come from now."""
    return daemon.engine("packed").model.placement


@cache
def addresses() -> dict[str, PciAddress]:
    """Of both drives, also while the kernel's driver does not know them: asked first when it does."""
    return controllers()


def drivers() -> list[str | None]:
    """Who has each drive."""
    return [driver(addresses()[serial]) for serial in SERIALS]


def is_unprivileged(pid: int) -> bool:
    """Whether a process is nobody's and has no capability."""
    status = Path(f"/proc/{pid}/status").read_text()
    return f"Uid:\t{NOBODY}\t{NOBODY}" in status and "CapEff:\t0000000000000000" in status
