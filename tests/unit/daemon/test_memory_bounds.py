"""Is memory held against what there is: the machine's, and every control group's on the way up?"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvstreamd.memory import Bound, bounds, excess, kills, smallest, tightest

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n"}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Version 2: the service's own group has no limit, the slice above it has one."""
    slice_ = "sys/fs/cgroup/system.slice"
    return write(tmp_path, MEMINFO | {
        "proc/self/cgroup": "0::/system.slice/nvstreamd.service\n",
        f"{slice_}/nvstreamd.service/memory.max": "max\n",
        f"{slice_}/nvstreamd.service/memory.current": f"{200 * MIB}\n",
        f"{slice_}/nvstreamd.service/memory.events": "low 0\noom 2\noom_kill 1\n",
        f"{slice_}/memory.max": f"{1000 * MIB}\n",
        f"{slice_}/memory.current": f"{900 * MIB}\n",
        f"{slice_}/memory.stat": f"anon {100 * MIB}\nfile {700 * MIB}\nshmem {50 * MIB}\n",
    })


def test_a_limit_anywhere_on_the_path_counts_and_pages_of_files_are_free(second: Path) -> None:
    group, machine = bounds(second)
    assert group == Bound("control group /system.slice", 1000 * MIB, 750 * MIB)
    assert machine == Bound("this machine", 24_000_000 << 10, 20_000_000 << 10)
    assert tightest(second) == smallest(second) == group
    assert kills(second) == 1


def test_version_1_is_read_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/box/inner"
    root = write(tmp_path, MEMINFO | {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/box/inner\n1:name=systemd:/\n",
        f"{group}/memory.limit_in_bytes": f"{300 * MIB}\n",
        f"{group}/memory.usage_in_bytes": f"{100 * MIB}\n",
        f"{group}/memory.stat": f"total_cache {40 * MIB}\ntotal_shmem 0\n",
        f"{group}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1\n",
    })
    assert bounds(root)[0] == Bound("control group /box/inner", 300 * MIB, 240 * MIB)
    assert kills(root) == 3


def test_a_ceiling_above_what_there_is_is_told_with_both_figures(second: Path) -> None:
    found = excess(500 << 30, second)
    assert found is not None and "512000 MiB" in found and "1000 MiB" in found and "/system.slice" in found
    assert excess(1000 * MIB, second) is None


def test_a_machine_that_tells_nothing_forbids_nothing(tmp_path: Path) -> None:
    assert bounds(tmp_path) == [] and tightest(tmp_path) is None and excess(1 << 60, tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": "garbage:without\n0::/x\n", "proc/meminfo": "MemTotal: many kB\n"})
    assert tightest(tmp_path) is None
