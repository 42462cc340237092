"""Is a path called available exactly where it is, and is every reason why not named with its exact remedy?"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from nvdma.select import FACTORIES
from nvstreamd.doctor.paths import PATHS
from nvstreamd.doctor.report import Reason
from nvstreamd.doctor.scratch import Trial
from nvstreamd.hardware.acs import ACS_ID
from nvstreamd.hardware.system import System
from support.machines import MACHINES
from support.pci_configuration import configuration
from unit.doctor.rig import ALL_WORK, READ_ALREADY, SPARE, USER, Examined, examined, notes, reasons

NAMES = sorted(path.stem for path in MACHINES.glob("*.tree"))
DESIGN = ["pread", "uring", "cufile", "p2pdma", "nvme_host", "nvme_vram", "gpu_doorbell"]
RELEASE = "6.14.0-35-generic"
DEVICES = "sys/bus/pci/devices"
GPU, DRIVE = f"{DEVICES}/0000:43:00.0", f"{DEVICES}/0000:44:00.0"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Jan 1 00:00:00 UTC 2025"


def test_where_nothing_is_missing_only_what_nvstreamd_cannot_do_yet_is_left(tmp_path: Path) -> None:
    found = examined("gpu-server", tmp_path).verdicts()
    assert list(found) == DESIGN
    assert {path for path, verdict in found.items() if verdict.is_available} == READ_ALREADY
    for path in set(DESIGN) - READ_ALREADY:
        assert len(found[path].reasons) == 1 and "not part of this version" in reasons(found[path]), path
    assert found["nvme_host"].summary == f"for {SPARE}"
    assert "nvstreamd claim SPARE001" in notes(found["nvme_host"])


def test_what_the_engine_reads_through_is_not_denied() -> None:
    assert set(FACTORIES) <= READ_ALREADY and len(PATHS) == len(DESIGN)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_implemented_is_available_nowhere_and_every_reason_has_a_check_and_a_remedy(
    tmp_path: Path, name: str
) -> None:
    for path, verdict in examined(name, tmp_path).verdicts().items():
        assert path in READ_ALREADY or not verdict.is_available
        assert verdict.checks and all(check.name and check.found for check in verdict.checks), path
        assert all(each.reason and each.remedy for each in (*verdict.reasons, *verdict.notes)), path


# On the server that has everything: the file that is another one, then path, reason and remedy that this brings.
CHANGES = [
    ("proc/sys/kernel/osrelease", "5.10.0", "uring", "older than 5.15", "Linux 5.15"),
    ("proc/sys/kernel/io_uring_disabled", "2", "uring", "io_uring_disabled = 2", "kernel.io_uring_disabled=0"),
    ("sys/class/iommu", None, "nvme_host", "no IOMMU is at work", "use a kernel with CONFIG_AMD_IOMMU"),
    (f"lib/modules/{RELEASE}/modules.dep", "", "nvme_host", f"{RELEASE} has no vfio-pci", "CONFIG_VFIO_PCI=m"),
    (f"lib/modules/{RELEASE}/modules.dep", None, "nvme_host", "has vfio-pci cannot be told", "on the host"),
    (DRIVE, None, "nvme_host", "this system runs from it", "use another drive"),
    (f"{DRIVE}/iommu_group", None, "nvme_host", "0000:44:00.0 is in no IOMMU group", "VT-d or AMD-Vi"),
    ("answers/blkid/nvme1n1", "0\nTYPE=ext4\nUSAGE=filesystem\n", "nvme_host", "ext4", "wipefs --all /dev/nvme1n1"),
    (GPU, None, "nvme_vram", "there is no NVIDIA GPU", "build one in"),
    (GPU, None, "p2pdma", "there is no NVIDIA GPU", "build one in"),
    (f"{GPU}/driver", None, "nvme_vram", "driver none has 0000:43:00.0 (NVIDIA L40S)", "modprobe nvidia"),
    ("proc/driver/nvidia/version", None, "nvme_vram", "driver is not loaded", "nvidia-open"),
    ("proc/driver/nvidia/version", PROPRIETARY.format("595.45.04"), "nvme_vram", "(proprietary)", "nvidia-open"),
    ("proc/driver/nvidia/version", OPEN.format("550.78"), "nvme_vram", "550.78 (open) has no static BAR1", "565 or"),
    ("proc/driver/nvidia/version", OPEN.format("580.95.05"), "p2pdma", "580.95.05 (open) publishes no", "595 or later"),
    ("proc/driver/nvidia/version", OPEN.format("570.124.06"), "gpu_doorbell", "no I/O memory on kernel", "575 or"),
    ("proc/driver/nvidia/params", 'RegistryDwords: "RMForceStaticBar1=1"', "p2pdma", "not set: RmForceDisableIomapWC",
     'options nvidia NVreg_RegistryDwords="RMForceStaticBar1=1;RmForceDisableIomapWC=1"'),
    ("proc/driver/nvidia/params", None, "p2pdma", "registry keys cannot be read", "modprobe nvidia"),
    (f"{GPU}/resource", "0xb0000000 0xb0ffffff 0x0\n0x1000000000 0x100fffffff 0x0", "nvme_vram",
     "is 256 MiB of 64 GiB", "Above 4G Decoding and Re-Size BAR"),
    (f"boot/config-{RELEASE}", "# CONFIG_PCI_P2PDMA is not set", "p2pdma", "without CONFIG_PCI_P2PDMA", "Ubuntu's"),
    (f"boot/config-{RELEASE}", None, "p2pdma", "PCI_P2PDMA cannot be told", "as root"),
    ("usr/local/cuda/lib64", None, "cufile", "neither libcufile nor kvikio", "pip install kvikio"),
    ("sys/module/nvidia_fs", None, "cufile", "copy through memory and not say so", "modprobe nvidia-fs"),
    ("proc/driver/nvidia/gpus/0000:43:00.0/information", "Model: NVIDIA GeForce RTX 3090", "cufile",
     "does not list 0000:43:00.0 (NVIDIA GeForce RTX 3090)", "data-centre"),
]


@pytest.mark.parametrize(("path", "text", "name", "reason", "remedy"), CHANGES)
def test_each_thing_that_is_missing_is_named_with_its_remedy(
    tmp_path: Path, path: str, text: str | None, name: str, reason: str, remedy: str
) -> None:
    verdict = examined("gpu-server", tmp_path).put(path, text).verdicts()[name]
    assert not verdict.is_available
    assert any(reason in each.reason and remedy in each.remedy for each in verdict.reasons), reasons(verdict)


def test_on_the_small_box_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    found = examined("small-box", tmp_path).verdicts()
    assert found["pread"].is_available
    assert reasons(found["uring"]).count("io_uring") >= 1 and len(found["uring"].reasons) == 1
    told = reasons(found["nvme_host"])
    assert "the firmware has VT-d on: add intel_iommu=on to GRUB_CMDLINE_LINUX" in told and "update-grub" in told
    assert 'serial = "WD000001"' in told and len(found["nvme_host"].reasons) == 2, told
    module = notes(found["nvme_host"])
    assert "with DKMS (0.1.0), not built for this kernel" in module and "dkms autoinstall -k 6.1.0-40-amd64" in module
    # Its kernel is locked down.
    assert "mokutil --import" in module
    assert "there is no NVIDIA GPU" in reasons(found["nvme_vram"])


@pytest.mark.parametrize(("changes", "remedy"), [
    ({"proc/cmdline": "ro intel_iommu=off quiet"}, "take intel_iommu=off out of GRUB_CMDLINE_LINUX"),
    ({"proc/cmdline": "ro intel_iommu=on"}, "CONFIG_INTEL_IOMMU"),
    ({"sys/firmware/acpi/tables/DMAR": None}, "enable VT-d in the firmware"),
    ({"sys/firmware/acpi/tables/DMAR": None, "proc/cpuinfo": "vendor_id : AuthenticAMD\n"}, "set IOMMU to Enabled"),
    ({"sys/firmware/acpi/tables/DMAR": None, "proc/cpuinfo": "vendor_id : X\nflags : fpu hypervisor\n"},
     "-device intel-iommu"),
    ({"sys/firmware/acpi/tables/DMAR": None, "proc/cpuinfo": None}, "VT-d, AMD-Vi, SMMU"),
])
def test_what_switches_the_iommu_on_depends_on_what_is_in_the_way(
    tmp_path: Path, changes: dict[str, str | None], remedy: str
) -> None:
    machine = examined("small-box", tmp_path)
    for path, text in changes.items():
        machine.put(path, text)
    assert remedy in reasons(machine.verdicts()["nvme_host"])


def test_without_an_iommu_our_module_is_what_counts_once_that_is_allowed(tmp_path: Path) -> None:
    """On the server, its IOMMU off: every other line of its list stays as it was."""
    machine = examined("gpu-server", tmp_path).put("sys/class/iommu", None).put(f"{DRIVE}/iommu_group", None)
    told = notes(machine.verdicts()["nvme_host"])
    assert "our module nvstream" in told and "unsafe_noiommu = true" in told and "all of this machine's memory" in told
    allowed = machine.but(unsafe_noiommu=True)
    (reason,) = allowed.verdicts()["nvme_host"].reasons
    assert "our module nvstream holds the memory, and it is not installed" in reason.reason
    assert "apt-get install dkms" in reason.remedy
    path = f"lib/modules/{RELEASE}/modules.dep"
    found = allowed.put(path, "updates/dkms/nvstream.ko.zst:\n").verdicts()["nvme_host"]
    assert found.is_available and found.summary == f"for {SPARE}"
    assert "drives are used without an IOMMU" in notes(found) and "can read and write all" in notes(found)


def test_where_nothing_can_be_read_only_files_are(tmp_path: Path) -> None:
    """A container without /sys, and a machine of which nothing is known."""
    found = Examined(System(tmp_path)).verdicts()
    assert {path for path, verdict in found.items() if verdict.is_available} == {"pread", "uring"}
    assert "the kernel shows no PCI device at all" in reasons(found["nvme_host"])


@pytest.mark.parametrize("name", NAMES)
def test_any_half_of_a_machines_files_missing_is_no_crash(tmp_path: Path, name: str) -> None:
    for seed in range(12):
        draw, machine = Random(seed), examined(name, tmp_path / str(seed))
        for path in sorted(machine.system.root.rglob("*")):
            if (path.is_symlink() or path.is_file()) and draw.random() < 0.5:
                path.unlink()
        found = machine.verdicts()
        assert {path for path, verdict in found.items() if verdict.is_available} <= READ_ALREADY


def test_garbage_in_every_file_is_unknown_and_no_crash(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path)
    for path in machine.system.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "class" and "answers" not in path.parts:
            path.write_bytes(b"\xff\x00 nonsense=9999999999999999999999;;= -> \n\n 1 2")
    assert "cannot be told" in reasons(machine.verdicts()["nvme_host"])


def test_a_kernels_configuration_is_found_in_procfs_and_beside_its_modules(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path).put(f"boot/config-{RELEASE}", None)
    assert "PCI_P2PDMA cannot be told" in reasons(machine.verdicts()["p2pdma"])
    machine.put(f"lib/modules/{RELEASE}/config", "CONFIG_PCI_P2PDMA=y\n")
    assert "PCI_P2PDMA" not in reasons(machine.verdicts()["p2pdma"])
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"# CONFIG_PCI_P2PDMA is not set\n"))
    assert "without CONFIG_PCI_P2PDMA" in reasons(machine.verdicts()["p2pdma"])
    (tmp_path / "proc/config.gz").write_bytes(b"\x1f\x8b torn")
    assert "PCI_P2PDMA" not in reasons(machine.verdicts()["p2pdma"])


def test_a_drive_beside_the_card_reads_differently_from_one_behind_the_processor(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path)
    assert "crosses the processor" not in notes(machine.verdicts()["nvme_vram"])
    machine.put(f"{DEVICES}/0000:42:01.0/secondary_bus_number", None)
    assert "0000:44:00.0 writes to 0000:43:00.0 crosses the processor" in notes(machine.verdicts()["nvme_vram"])


def test_a_data_centre_cards_window_is_found_behind_registers_of_64_bits(tmp_path: Path) -> None:
    machine = examined("h100-guest", tmp_path)
    (bar1,) = (check for check in machine.verdicts()["nvme_vram"].checks if check.name == "bar1")
    assert bar1.found == "0000:00:06.0 (NVIDIA H100 80GB HBM3): 128 GiB" and not bar1.reasons
    machine.put(f"{DEVICES}/0000:00:06.0/resource2_resize", "0000000000040000")
    assert "128 GiB of 256 GiB: too small" in reasons(machine.verdicts()["nvme_vram"])


@pytest.mark.parametrize(("space", "note"), [
    (configuration((ACS_ID, 1, b"\x5f\0\x1d\0")), "port 0000:42:01.0 sends what 0000:44:00.0 writes"),
    (configuration((ACS_ID, 1, b"\x5f\0\0\0")), ""),
    (configuration()[:64], "whether port 0000:42:01.0 lets 0000:44:00.0 reach"),
])
def test_a_switch_that_sends_everything_up_is_named(tmp_path: Path, space: bytes, note: str) -> None:
    machine = examined("gpu-server", tmp_path)
    (machine.system.root / DEVICES / "0000:42:01.0/config").write_bytes(space)
    found = notes(machine.verdicts()["nvme_vram"])
    assert note in found and ("port " in found) == bool(note)


FAILED = Trial("failed", Reason("it failed", "mend it"))


@pytest.mark.parametrize("trial", ["store", "direct", "ring", "uring"])
def test_whatever_was_tried_for_uring_and_failed_is_told(tmp_path: Path, trial: str) -> None:
    machine = examined("gpu-server", tmp_path).but(trials=replace(ALL_WORK, **{trial: FAILED}))
    found = machine.verdicts()
    assert reasons(found["uring"]) == "it failed -> mend it" and found["pread"].is_available


def test_the_reason_is_told_once_where_the_kernel_and_the_call_agree(tmp_path: Path) -> None:
    trials = replace(ALL_WORK, ring=FAILED, uring=FAILED)
    machine = examined("small-box", tmp_path).but(trials=trials)
    assert len(machine.verdicts()["uring"].reasons) == 1


def test_io_uring_for_a_group_matters_to_the_engines_user(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path).put("proc/sys/kernel/io_uring_disabled", "1")
    found = machine.verdicts()["uring"]
    assert found.is_available and "`engine_user`" in notes(found)
    found = machine.but(trials=replace(ALL_WORK, ring=FAILED)).verdicts()["uring"]
    assert not found.is_available and "io_uring_group" in reasons(found)


def test_too_little_locked_memory_is_a_note(tmp_path: Path) -> None:
    found = examined("gpu-server", tmp_path).but(process=USER).verdicts()["uring"]
    assert found.is_available
    assert "RLIMIT_MEMLOCK is 8 MiB, less than `memory` (1024 MiB)" in notes(found) and "ulimit -l" in notes(found)
