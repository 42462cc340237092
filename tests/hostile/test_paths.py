"""Can anybody have the daemon open, or look for, what he cannot open himself: by an import, a link, a manifest?

Root's daemon serves a directory of models that `nobody` may write, and `nobody` is an administrator: elsewhere than
with root this is skipped.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import models_pb2 as models
from nvstreamd.errors import NvstreamError, PermissionDenied
from nvstreamd.supervisor.rights import is_kernels, open_as_uid, rights_of_caller
from nvstreamd.weights.packed.files import Elsewhere, open_regular
from nvstreamd.weights.packed.store import files_of, sources_of
from support.daemon import DEADLINE, Daemon, running
from support.others import cannot, open_folder, open_python
from support.shapes import tiny
from unit.weights.models import make
from unit.weights.stores import pack

pytestmark = pytest.mark.skipif(bool(cannot()), reason=f"NOT TESTED: the rights of other users: {cannot()}")

NOBODY = 65534
# Imports what it is told, as whom it runs, and prints the status and what was said of it.
IMPORT = """
import sys
import grpc
from nvstream.v1.models_pb2 import ImportRequest
from nvstream.v1.models_pb2_grpc import ModelsStub
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    try:
        request = ImportRequest(source=sys.argv[2], name="imported", directories=sys.argv[3:])
        for _ in ModelsStub(channel).Import(request, timeout=120):
            pass
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""
# Shows a file of a mount that is in no namespace but its own.
ELSEWHERE = """
mount -t tmpfs none "$1" && echo content > "$1/file" || exit 99
exec "$2" -I -S -c 'import socket, sys
file = open(sys.argv[2])
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [file.fileno()])' "$3" "$1/file"
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon, `offered` to it as models, and `closed` to everybody but root."""

    daemon: Daemon
    offered: Path
    closed: Path
    prefix: list[str]

    def import_as_nobody(self, source: Path, *directories: Path) -> str:
        """How it ended."""
        command = [*self.prefix, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable,
                   "-c", IMPORT, str(self.daemon.socket), str(source), *map(str, directories)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def look(self, name: str) -> str:
        """What everybody learns of a model."""
        try:
            self.daemon.models.Get(models.GetRequest(model=name), timeout=DEADLINE)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"

    def link(self, name: str, target: Path, owner: int) -> None:
        """A link in the directory of models."""
        path = self.offered / name
        path.symlink_to(target)
        os.lchown(path, owner, owner)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with open_folder() as folder:
        offered, closed, store = (folder / name for name in ("offered", "closed", "daemon/store"))
        for path, mode in ((offered, 0o755), (closed, 0o700), (store, 0o755)):
            path.mkdir(mode, parents=True)
            path.parent.chmod(0o755)
        engine = pwd.getpwnam("daemon")
        os.chown(offered, NOBODY, NOBODY)
        os.chown(store, engine.pw_uid, engine.pw_gid)
        make(closed / "secret.gguf", tiny())
        config = folder / "nvstreamd.toml"
        config.write_text(f'model_directories = ["{offered}"]\nengine_user = "daemon"\n'
                          f'admin_group = "{grp.getgrgid(pwd.getpwuid(NOBODY).pw_gid).gr_name}"\n')
        prefix = open_python(folder)
        with running(folder / "daemon", "--config", str(config), prefix=prefix) as daemon:
            yield Site(daemon, offered, closed, prefix)


def nobodys_model(path: Path) -> Path:
    make(path, tiny())
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o600)
    return path


def test_an_administrator_imports_his_own_file(site: Site) -> None:
    """Which is closed to the engine's user: it is opened with the rights of who asks, not with fewer."""
    assert site.import_as_nobody(nobodys_model(site.offered / "own.gguf")) == "OK"


def test_an_administrator_does_not_import_roots_file_nor_learn_that_it_is_there(site: Site) -> None:
    there, missing = (site.import_as_nobody(site.closed / name) for name in ("secret.gguf", "missing.gguf"))
    assert there.replace("secret", "missing") == missing and "Permission denied" in missing, there


def test_nor_does_he_learn_which_of_roots_directories_are_there(site: Site) -> None:
    """An import writes as the engine's user, who sees no more than everybody does."""
    (site.closed / "there").mkdir()
    source = nobodys_model(site.offered / "to-directories.gguf")
    there, missing = (site.import_as_nobody(source, site.closed / name) for name in ("there", "missing"))
    assert there.replace("there", "missing") == missing and "Permission denied" in missing, there


def test_what_he_may_not_import_is_neither_device_nor_directory(site: Site) -> None:
    for path in (Path("/dev/null"), site.offered):
        assert "is not a regular file" in site.import_as_nobody(path)


def test_a_link_shows_nobody_more_than_whose_it_is(site: Site) -> None:
    site.link("there.gguf", site.closed / "secret.gguf", NOBODY)
    site.link("missing.gguf", site.closed / "missing.gguf", NOBODY)
    assert "Permission denied" in site.look("missing")
    assert site.look("there").replace("there", "missing") == site.look("missing")


def test_a_link_of_roots_leads_where_root_wants_and_a_link_to_ones_own_works(site: Site) -> None:
    site.link("roots.gguf", site.closed / "secret.gguf", 0)
    site.link("mine.gguf", nobodys_model(site.offered / "mine-itself.gguf"), NOBODY)
    assert site.look("roots") == site.look("mine") == "OK"


def test_a_link_of_roots_to_a_link_of_somebody_elses_is_no_way_around(site: Site) -> None:
    site.link("second.gguf", site.closed / "secret.gguf", NOBODY)
    site.link("first.gguf", site.offered / "second.gguf", 0)
    assert "Permission denied" in site.look("first")


def test_a_link_to_roots_packed_model_is_not_followed(site: Site) -> None:
    pack(site.closed / "secret.gguf", [site.closed], name="packed")
    site.link("packed.nvs", site.closed / "packed.nvs", NOBODY)
    site.link("absent.nvs", site.closed / "absent.nvs", NOBODY)
    assert site.look("packed") != "OK"
    assert site.look("packed").replace("packed", "absent") == site.look("absent")


def test_a_manifest_leads_no_further_than_whose_it_is(site: Site) -> None:
    """It names parts and sources by whole paths; whoever writes a directory of models writes it."""
    home = pack(site.closed / "secret.gguf", [site.offered, site.closed], name="striped")
    assert site.look("striped") == "OK"
    os.chown(home / "manifest.json", NOBODY, NOBODY)
    part = site.closed / "striped.nvs/part-1.bin"
    assert "Permission denied" in site.look("striped")
    assert Elsewhere(part, NOBODY) in files_of(home) and home / "part-0.bin" in files_of(home)
    assert sources_of(home)[0] == [Elsewhere(site.closed / "secret.gguf", NOBODY)]


def test_a_file_that_the_daemon_might_wait_for_is_told_without_asking_it(tmp_path: Path) -> None:
    """Whoever traces the opener may pass any descriptor: of a mount of his own, which he serves and need not answer."""
    own = tmp_path / "file"
    own.touch()
    with own.open() as file:
        assert is_kernels(file.fileno())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(["unshare", "--mount", "sh", "-c", ELSEWHERE, "sh", str(tmp_path), sys.executable,
                        str(theirs.fileno())], pass_fds=[theirs.fileno()], check=True)
        (fd,) = socket.recv_fds(ours, 1, 1)[1]
    assert os.read(fd, 7) == b"content" and not is_kernels(fd)
    os.close(fd)


def test_a_daemon_that_is_not_roots_opens_nothing_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its user's rights and no others: his files are not the members' of a group."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    assert rights_of_caller(1234, 1234) is None and rights_of_caller(0, 0) is None
    with pytest.raises(PermissionDenied):
        rights_of_caller(NOBODY, NOBODY)


def test_a_directory_of_his_that_becomes_a_link_shows_him_nothing(site: Site) -> None:
    """A directory in the directory of models may be replaced at any moment by whoever owns it."""
    for name in ("secret", "missing"):
        own = site.offered / f"{name}-folder"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        model = nobodys_model(own / f"{name}.gguf")
        os.close(open_regular(model, open_as_uid))
        model.unlink()
        own.rmdir()
        site.link(own.name, site.closed, NOBODY)
        with pytest.raises(NvstreamError, match="Permission denied"):
            open_regular(model, open_as_uid)
        assert model.parent.name not in str(site.daemon.models.List(models.ListRequest()).models)
