"""Does the doctor say what is true of a real kernel and real claims, and does its probe read a claimed drive?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvdma.pci.address import PciAddress
from nvstreamd.hardware.drives import nodes_of
from nvstreamd.hardware.system import System
from vm.guest.commands import nvstreamd
from vm.guest.machine import block_device, controllers, driver, give_back

NOT_READ_THROUGH = {"cufile", "p2pdma", "nvme_vram", "gpu_doorbell"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system on LAB0 that knows direct reads."""
    device, place = block_device(controllers()["LAB0"]), tmp_path_factory.mktemp("store")
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    subprocess.run(["mount", device, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def spare() -> Iterator[PciAddress]:
    """Drive LAB1; back with the kernel's driver afterwards."""
    address = controllers()["LAB1"]
    yield address
    give_back(address)


@pytest.fixture
def configuration(store: Path, tmp_path: Path) -> Path:
    """Names LAB1 alone."""
    path = tmp_path / "nvstreamd.toml"
    path.write_text(f'store = "{store}"\nclaims = "{tmp_path}/claims"\n[[drives]]\nserial = "LAB1"\n')
    return path


def doctor(*arguments: str | Path) -> dict[str, Any]:
    """What `nvstreamd doctor --json` says."""
    ended = nvstreamd("doctor", "--json", *arguments)
    found: dict[str, Any] = json.loads(ended.output)
    assert ended.status == 0 and found["serves"], ended
    return found | {"paths": {each["path"]: each for each in found["paths"]}}


def texts(path: dict[str, Any]) -> str:
    """Every reason and every thing found of a path."""
    return json.dumps([path["reasons"], [check["found"] for check in path["checks"]]])


def test_before_a_claim_the_spare_drive_is_named_and_the_mounted_one_is_not(
    spare: PciAddress, store: Path, configuration: Path
) -> None:
    found = doctor("--config", configuration)
    assert found["machine"]["iommu"].startswith("at work") and found["machine"]["drives"] == 2
    states = {name: path["state"] for name, path in found["paths"].items()}
    assert states == {name: "unavailable" if name in NOT_READ_THROUGH else "available" for name in states}, found
    told = found["paths"]["nvme_host"]
    assert told["summary"] == f"for {spare}"
    assert f"is mounted at {store}" in texts(told)
    assert {note["remedy"] for note in told["notes"]} >= {"nvstreamd claim LAB1"}
    assert driver(spare) == "nvme" and not list(store.glob(".*")), "the doctor changed something"


def test_a_drive_that_nobody_named_is_the_reason_and_its_entry_the_remedy(
    spare: PciAddress, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nothing.toml"
    path.write_text(f'store = "{store}"\nclaims = "{tmp_path}/claims"\n')
    told = doctor("--config", path)["paths"]["nvme_host"]
    assert told["state"] == "unavailable"
    assert any(str(spare) in each["reason"] and 'serial = "LAB1"' in each["remedy"] for each in told["reasons"])


def test_a_claimed_drive_is_read_by_the_probe_and_can_be_given_back(spare: PciAddress, configuration: Path) -> None:
    before = block_device(spare).read_bytes()
    assert nvstreamd("claim", "LAB1", "--config", configuration).status == 0
    found = doctor("--config", configuration, "--probe")
    assert found["paths"]["nvme_host"]["state"] == "available"
    assert f"{spare} (LAB1) is claimed" in texts(found["paths"]["nvme_host"])
    probes = {each["path"]: each for each in found["probes"]}
    assert set(probes) == {"pread", "uring", "nvme_host"}
    for name, probed in probes.items():
        assert probed["reason"] is None and probed["nbytes"] == 64 << 20 and probed["bytes_per_second"] > 0, name
    assert nvstreamd("release", "LAB1", "--config", configuration).status == 0
    assert driver(spare) == "nvme" and controllers()["LAB1"] == spare
    assert nodes_of(System(), spare), "it is given back and cannot be opened yet"
    assert block_device(spare).read_bytes() == before


def test_the_text_has_a_line_for_each_path(spare: PciAddress, configuration: Path) -> None:
    ended = nvstreamd("doctor", "--config", configuration)
    assert ended.status == 0 and f"nvme_host     available    for {spare}" in ended.output.splitlines()
    unavailable = {line.split()[0] for line in ended.output.splitlines() if " unavailable" in line}
    assert unavailable == NOT_READ_THROUGH | {"gpu"}
