"""Can people and programs read a diagnosis, and does each line of it come from a check?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvstreamd.doctor.examine import head
from nvstreamd.doctor.host import host
from nvstreamd.doctor.report import Check, Head, Probed, Reason, Report, Verdict, as_json, as_text
from unit.doctor.rig import ROOT, examined

HEAD = Head("6.1", "none at work", "none", None, 0, 0, True)
MISSING = Reason("it is missing", "apt-get install it")
GOOD = Verdict("pread", (Check("read", "works"),), "it works")
BAD = Verdict("uring", (Check("kernel", "6.1"), Check("it", "none", (MISSING,), (Reason("it is slow", "mend it"),))))


def test_a_path_is_a_line_and_what_it_lacks_is_below_it() -> None:
    lines = as_text(Report(HEAD, (GOOD, BAD))).splitlines()
    assert lines[lines.index("uring         unavailable") :] == [
        "uring         unavailable", "    it is missing", "        -> apt-get install it", "    note: it is slow",
        "        -> mend it"]
    assert "pread         available    it works" in lines


def test_a_remedy_is_told_in_full_once(tmp_path: Path) -> None:
    text = as_text(Report(HEAD, tuple(examined("homelab", tmp_path).verdicts().values())))
    assert text.count("VT-d, AMD-Vi, SMMU") == 1
    assert text.count("    no IOMMU is at work\n        -> as for nvme_host\n") == 2


def test_in_json_every_reason_belongs_to_a_check(tmp_path: Path) -> None:
    report = Report(HEAD, tuple(examined("small-box", tmp_path).verdicts().values()))
    for path in json.loads(as_json(report))["paths"]:
        assert path["state"] == ("unavailable" if path["reasons"] else "available")
        assert path["reasons"] == [
            reason for number, reason in enumerate(path["reasons"])
            if any(reason in check["reasons"] for check in path["checks"]) and reason not in path["reasons"][:number]]
        assert all(check["name"] and check["found"] for check in path["checks"])


def test_a_drive_cannot_speak_to_the_terminal() -> None:
    """A serial number is whatever a drive says."""
    hostile = Verdict("nvme_host", (Check("drives", "x", (Reason("\x1b]0;owned\x07\u202e\n0000:01:00.0", "a\rb"),)),))
    text = as_text(Report(HEAD, (hostile,)))
    assert all(each.isprintable() for each in text.replace("\n", "")) and "?]0;owned??" in text


def test_the_head_names_a_link_that_is_slower_than_the_drive(tmp_path: Path) -> None:
    found = head(host(examined("small-box", tmp_path).system, ROOT))
    assert (found.kernel, found.lockdown, found.drives, found.gpus) == ("6.1.0-40-amd64", "integrity", 1, 1)
    (link,) = found.slow_links
    assert "0000:01:00.0 (WD Blue SN550 500GB) is 8.0 GT/s PCIe x2" in link.reason and "x4" in link.reason
    text = as_text(Report(found, ()))
    assert "IOMMU         none at work\n" in text and "    note: the link of 0000:01:00.0" in text


def test_an_emulated_link_is_not_complained_of(tmp_path: Path) -> None:
    """As QEMU's drives have them."""
    machine = examined("small-box", tmp_path)
    link = {"current_link_speed": "Unknown", "max_link_speed": "Unknown", "current_link_width": "0",
            "max_link_width": "255"}
    for name, text in link.items():
        machine.put(f"sys/bus/pci/devices/0000:01:00.0/{name}", text)
    assert head(host(machine.system, ROOT)).slow_links == ()


def test_a_link_that_says_nothing_is_not_complained_of(tmp_path: Path) -> None:
    machine = examined("small-box", tmp_path)
    for name in ("current_link_speed", "current_link_width"):
        machine.put(f"sys/bus/pci/devices/0000:01:00.0/{name}", "Unknown")
    assert head(host(machine.system, ROOT)).slow_links == ()
    fast = examined("gpu-server", tmp_path / "fast")
    assert head(host(fast.system, ROOT)).slow_links == ()


@pytest.mark.parametrize(("verdicts", "probes", "serves"), [
    ((GOOD, BAD), (), True),
    ((BAD,), (), False),
    ((Verdict("nvme_host", ()), BAD), (), False),
    ((GOOD, BAD), (Probed("pread", "a file", reason=MISSING),), False),
    ((GOOD, BAD), (Probed("nvme_host", "a drive", reason=MISSING),), True),
])
def test_whether_files_can_be_served_decides_the_exit_status(
    verdicts: tuple[Verdict, ...], probes: tuple[Probed, ...], serves: bool
) -> None:
    report = Report(HEAD, verdicts, probes)
    assert report.serves is serves and json.loads(as_json(report))["serves"] is serves


def test_a_probe_has_its_figure_or_its_reason() -> None:
    good = Probed("uring", "/models/a.gguf", 64 << 20, 1.5e9, "pread")
    text = as_text(Report(HEAD, (), (good, replace(good, path="pread", reason=MISSING))))
    assert "probe uring         1500.0 MB/s  64.0 MiB of /models/a.gguf, every byte as pread\n" in text
    assert "probe pread         failed\n    it is missing\n        -> apt-get install it\n" in text
