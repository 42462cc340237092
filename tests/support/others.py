"""How does a test let other users run this Python, and act as one of them? Needs root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvdma.confine import Filters

# A Python below a directory that is closed to others, like /root, is shown in an open one; to this command alone.
OPEN = """
mount --rbind "$1" "$2" && mount -t tmpfs -o mode=755 none "$3" && mkdir -p "$1" && mount --rbind "$2" "$1" || exit 99
shift 3
exec "$@"
"""


def no_filter() -> str:
    """Why there is no filter of system calls here; empty when there is."""
    try:
        Filters()
    except OSError as error:
        return f"{error}: install libseccomp2"
    return ""


def cannot() -> str:
    """Why processes of other users cannot be had here; empty when they can."""
    if os.getuid():
        return "needs root"
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux)"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A directory that everybody can enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="nvstreamd-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def open_python(folder: Path) -> list[str]:
    """What to put before a command so that the Python it starts can be run by everybody; `folder` is scratch space."""
    python = Path(sys.executable).resolve()
    for closed, below in zip(list(python.parents)[:0:-1], list(python.parents)[-2::-1], strict=True):
        if not closed.stat().st_mode & stat.S_IXOTH:
            kept = folder / "interpreter"
            kept.mkdir(exist_ok=True)
            return ["unshare", "--mount", "sh", "-c", OPEN, "sh", str(below), str(kept), str(closed)]
    return []


def status_of(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status: the words behind each name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
