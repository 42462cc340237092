"""Can an engine that was taken over reach another engine, or leave something behind for the next one?

Root alone can start processes of other users: elsewhere this is skipped.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import models_pb2 as models
from nvstreamd.config import EngineUids
from nvstreamd.supervisor.engine_uids import EngineUsers, Loan, Task
from support.daemon import DEADLINE, Daemon, running
from support.others import cannot, no_filter, open_folder, open_python, status_of
from support.shapes import tiny
from unit.weights.models import make

MISSING = cannot() or no_filter()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOT TESTED: engines of other users: {MISSING}")

FIRST, COUNT = 70000, 6
OTHER_FIRST = 70100
BUDGET = 16 << 20
# Run as one engine's uid, against another's process. The signal that would end it comes last.
ATTACK = """
import ctypes, errno, os, sys
pid, address = int(sys.argv[1]), ctypes.create_string_buffer(8)
libc = ctypes.CDLL(None, use_errno=True)
def tried(what, act):
    try:
        act()
        print(what, 0)
    except OSError as error:
        print(what, error.errno)
def read_memory():
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(address), 8)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
for name in ("mem", "environ", "maps", "fd/0"):
    tried(name, lambda: os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
tried("process_vm_readv", read_memory)
if "other" in sys.argv:
    for number in (0, 9):
        tried(f"signal {number}", lambda: os.kill(pid, number))
"""
PYTHON = "/usr/bin/python3"
needs_python = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"NOT TESTED: the attack needs {PYTHON}")


def configured(folder: Path, first: int = FIRST, count: int = COUNT) -> Path:
    """A configuration with three models. A range of uids is for one daemon alone."""
    (folder / "gguf").mkdir(mode=0o755)
    for name in ("a", "b", "c"):
        make(folder / "gguf" / f"{name}.gguf", tiny())
    path = folder / "nvstreamd.toml"
    path.write_text(f'model_directories = ["{folder}/gguf"]\nengine_user = "nobody"\n'
                    f'engine_uids = {{ first = {first}, count = {count} }}\n')
    return path


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One that serves `a` and `b`."""
    roots = {"ROOTS_SECRET": "hunter2", "HOME": "/root"}
    with open_folder() as folder, running(folder / "daemon", "--config", str(configured(folder)), "--memory", "256MiB",
                                          environment=roots, prefix=open_python(folder)) as started:
        for name in ("a", "b"):
            started.load(name, BUDGET)
        yield started


def pid_of(daemon: Daemon, name: str) -> int:
    return daemon.engine(name).pid


def uid_of(daemon: Daemon, name: str) -> int:
    return int(status_of(pid_of(daemon, name))["Uid"][0])


def attack(uid: int, pid: int, *more: str) -> dict[str, int]:
    done = subprocess.run([PYTHON, "-c", ATTACK, str(pid), *more], user=uid, group=65534, extra_groups=[], env={},
                          capture_output=True, text=True, check=True, cwd="/")
    return {what: int(number) for what, number in (line.rsplit(" ", 1) for line in done.stdout.splitlines())}


def test_each_engine_is_a_user_of_its_own_behind_walls(daemon: Daemon) -> None:
    found = [status_of(pid_of(daemon, name)) for name in ("a", "b")]
    uids = {status["Uid"][0] for status in found}
    assert len(uids) == 2 and all(FIRST < int(uid) < FIRST + COUNT for uid in uids)
    for status in found:
        assert len(set(status["Uid"])) == 1 and set(status["Gid"]) == {"65534"} and not status["Groups"]
        assert int(status["CapEff"][0], 16) == int(status["CapPrm"][0], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])


def test_nothing_is_left_to_be_said_of_its_walls(daemon: Daemon) -> None:
    assert not [note for note in daemon.engine("a").model.placement.notes if "wall" in note or "engine_u" in note]


@needs_python
def test_one_engine_neither_ends_nor_reads_another(daemon: Daemon) -> None:
    """Whoever took one over has its uid, and would have every user's prompts."""
    other = pid_of(daemon, "b")
    found = attack(uid_of(daemon, "a"), other, "other")
    assert len(found) == 7 and set(found.values()) <= {errno.EPERM, errno.EACCES}, found
    assert pid_of(daemon, "b") == other and daemon.generate("b", [1, 2, 3], max_tokens=2).ids


@needs_python
def test_not_even_its_own_uid_reads_an_engines_memory(daemon: Daemon) -> None:
    """What an engine starts, for a template say, has its uid."""
    found = attack(uid_of(daemon, "a"), pid_of(daemon, "a"))
    assert len(found) == 5 and set(found.values()) <= {errno.EPERM, errno.EACCES}, found


def test_an_engine_knows_nothing_of_roots_environment(daemon: Daemon) -> None:
    environment = Path(f"/proc/{pid_of(daemon, 'a')}/environ").read_bytes().split(b"\0")
    assert b"HOME=/nonexistent" in environment and not any(each.startswith(b"ROOTS_SECRET") for each in environment)
    assert os.readlink(f"/proc/{pid_of(daemon, 'a')}/cwd") == "/"


def test_what_an_engine_leaves_behind_ends_with_it(daemon: Daemon) -> None:
    """The next engine with that uid could be ended, or watched, by it."""
    daemon.load("c", BUDGET)
    left = subprocess.Popen(["sleep", "600"], user=uid_of(daemon, "c"), group=65534, extra_groups=[], cwd="/")
    daemon.unload("c")
    assert left.wait(DEADLINE) == -9


def test_an_engine_that_is_replaced_gets_another_uid(daemon: Daemon) -> None:
    before, pid = uid_of(daemon, "a"), pid_of(daemon, "a")
    os.kill(pid, 9)
    daemon.wait("another engine", lambda: pid_of(daemon, "a") not in (0, pid))
    assert daemon.generate("a", [1, 2, 3], max_tokens=2).ids and uid_of(daemon, "a") != before


def test_there_are_as_many_engines_as_uids() -> None:
    """One serves here, and one looks into files: everybody may ask for that, and no engine lacks a uid for it."""
    with open_folder() as folder, running(folder / "daemon", "--config", str(configured(folder, OTHER_FIRST, 3)),
                                          "--memory", "256MiB", prefix=open_python(folder)) as daemon:
        request = models.GetRequest(model="c")
        with ThreadPoolExecutor(4) as pool:
            looks = [pool.submit(daemon.models.Get, request, timeout=DEADLINE) for _ in range(4)]
            assert all(look.result().model.facts.layers for look in looks)
        daemon.load("a", BUDGET)
        with pytest.raises(grpc.RpcError) as refused:
            daemon.load("b", BUDGET)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "engine_uids" in refused.value.details()
        daemon.unload("a")
        daemon.load("b", BUDGET)


def test_engines_that_start_at_once_do_not_hinder_each_other() -> None:
    """What ends a uid's processes is itself a process of a uid: of two at once one would end the other."""
    users = EngineUsers("nobody", EngineUids(first=OTHER_FIRST, count=17))

    async def lend_all() -> list[Loan]:
        return await asyncio.gather(*(users.lend(Task.SERVE) for _ in range(12)))

    loans = asyncio.run(lend_all())
    assert len({loan.uid for loan in loans} | {loan.identity["user"] for loan in loans}) == 12


def test_without_uids_status_says_what_is_lost() -> None:
    with open_folder() as folder:
        config = configured(folder)
        config.write_text("\n".join(line for line in config.read_text().splitlines() if "engine_uids" not in line))
        with running(folder / "daemon", "--config", str(config), "--memory", "256MiB",
                     prefix=open_python(folder)) as daemon:
            daemon.load("a", BUDGET)
            assert any("`engine_uids`" in note for note in daemon.engine("a").model.placement.notes)


def test_uids_that_are_somebodys_are_refused() -> None:
    """The daemon ends whatever runs under them."""
    with open_folder() as folder:
        config = configured(folder, 1)
        with pytest.raises(AssertionError, match="uid 1 is "), running(folder / "daemon", "--config", str(config)):
            pass
