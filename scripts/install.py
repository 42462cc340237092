"""How does the tree get onto a machine without a package manager, and off it again?

Usage: install.py install|uninstall.
$PREFIX (/usr) is where it goes, below $DESTDIR when that is set: then the files are all there is, as for who makes a
package of them. Otherwise `setup` makes the environment, accounts and module that the Debian package has as well.
A list of what was installed lies beside it, and is what an uninstallation removes.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import packaged

# What dpkg knows of our package.
PACKAGE = Path("/var/lib/dpkg/info/nvstreamd.list")
# That of `setup`.
PYTHON = "/usr/bin/python3"
SERVICES = ("nvstreamd.socket", "nvstreamd.service")


@dataclass(frozen=True, slots=True)
class Tree:
    """The files to put in place: `prefix` as the installed files name themselves, below `root`."""

    root: Path
    prefix: str

    @property
    def home(self) -> Path:
        """Where everything of ours is that has no place elsewhere."""
        return self.root / self.prefix.lstrip("/") / "lib/nvstreamd"

    @property
    def listed(self) -> Path:
        """The list of what was installed: a path below `root` a line, directories that were made end in a slash."""
        return self.home / "installed"

    @property
    def live(self) -> bool:
        """Whether this machine is to run it, not one that is made from the files."""
        return self.root == Path("/")


def tree_of_caller() -> Tree:
    """What the caller's environment says."""
    prefix = "/" + os.environ.get("PREFIX", "/usr").strip("/")
    return Tree(Path(os.environ.get("DESTDIR") or "/").resolve(), prefix)


def install(to: Tree) -> None:
    """Puts everything there. An older installation goes first; a configuration that is there stays as it is."""
    if to.live and PACKAGE.exists():
        sys.exit("install: the Debian package nvstreamd is installed (apt-get remove nvstreamd)")
    kept = uninstall(to, keep_config=True) if to.listed.exists() else []
    with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
        tree = Path(scratch)
        packaged.stage(tree, to.prefix, (_python(),) if to.live else packaged.PYTHONS)
        made = [line for path in sorted(tree.rglob("*")) if (line := _put(path, tree, to.root))]
    to.listed.write_text("".join(f"{line}\n" for line in [*kept, *made, str(to.listed.relative_to(to.root))]))
    if to.live:
        subprocess.run([to.home / "setup", "make"], check=True)
        if _systemd_runs():
            subprocess.run(["systemctl", "daemon-reload"], check=True)
        _say("installed; `systemctl enable --now nvstreamd.socket nvstreamd.service` starts it")


def uninstall(to: Tree, *, keep_config: bool = False) -> list[str]:
    """Removes what was installed and what `setup` made. What the service wrote stays, and accounts.

    Returns the directories of the list that are still there, for others have files in them.
    """
    if not to.listed.exists():
        sys.exit(f"install: nothing to uninstall: there is no {to.listed}")
    if to.live:
        if _systemd_runs():
            subprocess.run(["systemctl", "disable", "--now", *SERVICES], check=True)
        subprocess.run([to.home / "setup", "remove"], check=True)
    lines = to.listed.read_text().splitlines()
    for line in (line for line in lines if not line.endswith("/")):
        if Path(line) == packaged.CONFIG and (keep_config or _changed(to.root / line)):
            _say(f"{to.root / line} stays")
        else:
            (to.root / line).unlink(missing_ok=True)
    folders = [line for line in lines if line.endswith("/") and (to.root / line).is_dir()]
    for line in sorted(folders, reverse=True):
        if not any((to.root / line).iterdir()):
            (to.root / line).rmdir()
    if to.live and _systemd_runs():
        subprocess.run(["systemctl", "daemon-reload"], check=True)
    return [line for line in folders if (to.root / line).is_dir()]


def _put(path: Path, tree: Path, root: Path) -> str:
    """One file or directory; returns its line of the list, nothing when it was there and stays."""
    name = path.relative_to(tree)
    goal = root / name
    if path.is_dir() and not path.is_symlink():
        if goal.is_dir():
            return ""
        goal.mkdir(parents=True)
        return f"{name}/"
    if name == packaged.CONFIG and goal.exists():
        return str(name)
    goal.unlink(missing_ok=True)
    shutil.copy2(path, goal, follow_symlinks=False)
    return str(name)


def _changed(config: Path) -> bool:
    return config.exists() and not filecmp.cmp(config, packaged.ROOT / "systemd/nvstreamd.toml", shallow=False)


def _python() -> str:
    """The version of the Python that will run it, as pip writes it."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def _systemd_runs() -> bool:
    return Path("/run/systemd/system").is_dir()


def _scratch() -> Path:
    folder = packaged.ROOT / "build"
    folder.mkdir(exist_ok=True)
    return folder


def _say(text: str) -> None:
    print(f"install: {text}", file=sys.stderr)


def main() -> None:
    """Carries out what is asked."""
    if sys.argv[1:] == ["install"]:
        install(tree_of_caller())
    elif sys.argv[1:] == ["uninstall"]:
        uninstall(tree_of_caller())
    else:
        sys.exit("usage: install.py install|uninstall")


if __name__ == "__main__":
    main()
