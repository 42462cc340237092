"""Does `make install` put everything where it belongs, and does `make uninstall` leave nothing of it?"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[3]
PREFIX = "/usr/local"
CARDS_SOURCES = {"nvstreamd/kernels/cpu/blocks.h",
                 *(f"nvstreamd/kernels/gpu/{path.name}" for path in (ROOT / "daemon/nvstreamd/kernels/gpu").iterdir())}
# What another program has installed before us, beside our files.
FOREIGN = Path("usr/local/bin/other")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's files, none of them ours."""
    made = tmp_path_factory.mktemp("root")
    (made / FOREIGN).parent.mkdir(parents=True)
    (made / FOREIGN).touch()
    return made


def make(goal: str, root: Path) -> None:
    """As an administrator whose files nobody else may read."""
    subprocess.run(["make", "--no-print-directory", goal, f"PREFIX={PREFIX}", f"DESTDIR={root}"], cwd=ROOT, check=True,
                   umask=0o077)


@pytest.mark.slow
def test_what_is_installed_works_from_its_prefix_and_goes_again(root: Path) -> None:
    make("install", root)
    home = root / "usr/local"
    unit = (home / "lib/systemd/system/nvstreamd.service").read_text()
    assert f"ExecStart={PREFIX}/lib/nvstreamd/venv/bin/nvstreamd " in unit and "/usr/lib/" not in unit
    assert os.readlink(home / "bin/nvstream") == "../lib/nvstreamd/venv/bin/nvstream"
    assert {path.name.partition("-")[0] for path in (home / "lib/nvstreamd/wheels").iterdir()} >= {
        "nvstreamd", "nvstream", "grpcio", "numpy"}
    assert (home / "lib/nvstreamd/wheels").stat().st_mode & 0o777 == 0o755, "engines cannot read it"
    assert list((root / "usr/src").glob("nvstream-*/dkms.conf"))
    # The Debian package has the same wheel. What a card runs is compiled where the card is.
    (wheel,) = (home / "lib/nvstreamd/wheels").glob("nvstreamd-*.whl")
    with ZipFile(wheel) as packed:
        assert set(packed.namelist()) >= CARDS_SOURCES
    make("install", root)
    make("uninstall", root)
    assert [path for path in root.rglob("*") if path.is_file() or path.is_symlink()] == [root / FOREIGN]
    assert not (root / "etc").exists() and not (root / "usr/src").exists()


@pytest.mark.slow
def test_a_configuration_that_was_changed_outlives_its_program(root: Path) -> None:
    make("install", root)
    config = root / "etc/nvstreamd/nvstreamd.toml"
    config.write_text('memory = "8GiB"\n')
    make("install", root)
    assert config.read_text() == 'memory = "8GiB"\n'
    make("uninstall", root)
    assert config.read_text() == 'memory = "8GiB"\n'
    config.unlink()
