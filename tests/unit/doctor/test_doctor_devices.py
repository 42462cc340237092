"""Is a card called available exactly where an engine could compute on it, and is each thing that lacks named?"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nvstreamd.doctor.devices import verdicts
from nvstreamd.doctor.host import host, process
from nvstreamd.doctor.report import Head, Report, Verdict, as_json, as_text
from nvstreamd.doctor.toolkit import NOTHING, Toolkit, toolkit
from nvstreamd.hardware.system import System
from support.machines import MACHINES
from unit.doctor.rig import ROOT, Examined, examined, notes, reasons

NAMES = sorted(path.stem for path in MACHINES.glob("*.tree"))
ALL = Toolkit(13, 13, frozenset({13}))
GPU = "sys/bus/pci/devices/0000:43:00.0"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Jan 1 00:00:00 UTC 2025"
VERSION = "proc/driver/nvidia/version"


def gpu(machine: Examined, packages: Toolkit = ALL) -> Verdict:
    """What is said of a card."""
    (found,) = verdicts(host(machine.system, replace(ROOT, toolkit=packages)))
    return found


@pytest.mark.parametrize("name", ["gpu-server", "h100-guest", "desktop"])
def test_a_card_with_a_driver_and_the_packages_is_there(tmp_path: Path, name: str) -> None:
    found = gpu(examined(name, tmp_path))
    assert found.is_available and "NVIDIA" in found.summary, reasons(found)
    # The number itself is in no file.
    assert "8.0 or later" in found.checks[0].found and "CUDA alone tells" in found.checks[0].found


def test_drives_need_an_open_driver_and_kernels_do_not(tmp_path: Path) -> None:
    assert gpu(examined("gpu-server", tmp_path).put(VERSION, PROPRIETARY.format("580.95.05"))).is_available


# On the server that has everything: the file that is another one, then reason and remedy that this brings.
CHANGES = [
    (f"{GPU}/device", "0x1eb8", "compute capability before 8.0", "2020 or later"),
    (f"{GPU}/device", "0x21c4", "compute capability before 8.0", "2020 or later"),
    (GPU, None, "no NVIDIA GPU to multiply on", "CPU's kernels"),
    (f"{GPU}/driver", None, "driver none has 0000:43:00.0 (NVIDIA L40S)", "modprobe nvidia"),
    (VERSION, None, "driver is not loaded", "nvidia-open"),
    (VERSION, PROPRIETARY.format("470.256.02"), "470.256.02 (proprietary) is older than 525", "nvidia-open"),
    (VERSION, OPEN.format("550.163.01"), "cupy-cuda13x needs the driver 580 or later",
     "pip uninstall cupy-cuda13x, then pip install nvstreamd[cuda12]"),
]


@pytest.mark.parametrize(("path", "text", "reason", "remedy"), CHANGES)
def test_each_thing_that_the_machine_lacks_is_named_with_its_remedy(
    tmp_path: Path, path: str, text: str | None, reason: str, remedy: str
) -> None:
    found = gpu(examined("gpu-server", tmp_path).put(path, text))
    assert not found.is_available
    assert any(reason in each.reason and remedy in each.remedy for each in found.reasons), reasons(found)


@pytest.mark.parametrize(("packages", "reason"), [
    (replace(ALL, cupy=None), "cupy, which calls the card's driver, is not installed"),
    (replace(ALL, bindings=None), "cuda-bindings, which calls NVRTC, is not installed"),
    (replace(ALL, nvrtc=frozenset()), "NVRTC of CUDA 13"),
    (replace(ALL, nvrtc=frozenset({12})), "NVRTC of CUDA 13"),
])
def test_each_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, packages: Toolkit, reason: str
) -> None:
    (only,) = gpu(examined("gpu-server", tmp_path), packages).reasons
    assert reason in only.reason and "pip install nvstreamd[cuda13]" in only.remedy


def test_the_debian_package_is_told_of_the_package_beside_it(tmp_path: Path) -> None:
    (only,) = gpu(examined("gpu-server", tmp_path), replace(ALL, cupy=None, packaged=True)).reasons
    assert "nvstreamd-cuda" in only.remedy and "pip" not in only.remedy


def test_an_older_driver_is_given_the_older_release(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path).put(VERSION, OPEN.format("570.133.07"))
    told = reasons(gpu(machine, NOTHING))
    assert told.count("pip install nvstreamd[cuda12]") == 2 and "cuda13" not in told
    assert gpu(machine, Toolkit(12, 12, frozenset({12}))).is_available
    # Built from source, for a release that it does not say.
    assert gpu(machine, Toolkit(0, 12, frozenset({12}))).is_available


def test_ga100_is_new_although_its_number_is_low(tmp_path: Path) -> None:
    assert gpu(examined("gpu-server", tmp_path).put(f"{GPU}/device", "0x20b0")).is_available


def test_beside_a_card_that_can_an_old_one_is_a_note(tmp_path: Path) -> None:
    machine = examined("gpu-server", tmp_path)
    old = tmp_path / "sys/bus/pci/devices/0000:45:00.0"
    old.mkdir()
    for name, text in {"vendor": "0x10de", "device": "0x1eb8", "class": "0x030200"}.items():
        (old / name).write_text(text)
    (old / "driver").symlink_to("../../../../bus/pci/drivers/nvidia")
    found = gpu(machine)
    assert found.is_available and "0000:45:00.0" in notes(found) and "0000:45" not in found.summary


def test_a_module_that_an_engine_may_not_load_is_a_note(tmp_path: Path) -> None:
    machine = examined("h100-guest", tmp_path)
    assert not gpu(machine).notes
    machine.put("sys/module/nvidia_uvm", None)
    assert "nvidia_uvm is not loaded" in notes(gpu(machine)) and "modules-load.d" in notes(gpu(machine))


@pytest.mark.parametrize("name", NAMES)
def test_without_packages_no_machine_has_one_and_every_reason_has_a_remedy(tmp_path: Path, name: str) -> None:
    found = gpu(examined(name, tmp_path), NOTHING)
    assert not found.is_available and all(each.reason and each.remedy for each in (*found.reasons, *found.notes))
    assert all(check.name and check.found for check in found.checks)


def test_a_machine_of_which_nothing_is_known_has_none(tmp_path: Path) -> None:
    assert "no NVIDIA GPU" in reasons(gpu(Examined(System(tmp_path))))


def test_people_and_programs_find_it_behind_the_paths(tmp_path: Path) -> None:
    report = Report(Head("6.1", "none at work", "none", None, 0, 0, True), (), devices=(
        gpu(examined("gpu-server", tmp_path), NOTHING),))
    assert "multiplies beside the processor:\ngpu           unavailable\n    cupy, which" in as_text(report)
    (device,) = json.loads(as_json(report))["devices"]
    assert device["device"] == "gpu" and device["state"] == "unavailable" and len(device["reasons"]) == 2


PACKAGES = ("cupy_cuda12x-13.6.0", "cuda_bindings-12.9.4", "nvidia_cuda_nvrtc_cu12-12.9.86")


def test_packages_are_found_and_none_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of root looks for them: whatever they would do when they are imported, it does not."""
    for each in PACKAGES:
        folder, (name, _, number) = tmp_path / f"{each}.dist-info", each.partition("-")
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n")
    for package in ("cupy", "cuda"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    root = System(tmp_path / "root")
    assert process(root).toolkit == Toolkit(12, 12, frozenset({12}))
    toolkits = tmp_path / "root/usr/local/cuda/lib64"
    toolkits.mkdir(parents=True)
    (toolkits / "libnvrtc.so.13.0.88").touch()
    (toolkits / "libnvrtc-builtins.so.11.8").touch()
    assert toolkit(root).nvrtc == {12, 13}
    monkeypatch.setattr(sys, "path", [])
    assert toolkit(System(tmp_path / "none")) == NOTHING
