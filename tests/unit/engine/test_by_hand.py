"""Can whoever debugs run an engine alone, and see in a trace where its time goes?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nvstreamd import trace
from nvstreamd.engine.by_hand import main
from nvstreamd.trace import Trace, open_trace
from support.files import SMOLLM2

LAYERS = 30


def by_hand(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the documented command says."""
    command = [sys.executable, "-m", "nvstreamd.engine.by_hand", str(SMOLLM2), "--tokens", "6", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, **environment})


def events(directory: Path) -> list[dict[str, Any]]:
    """All events of the only trace there; the array is open, as the format allows."""
    (path,) = directory.iterdir()
    assert path.name.startswith("trace-") and path.suffix == ".json" and path.stat().st_mode & 0o077 == 0
    found: list[dict[str, Any]] = json.loads(path.read_text().rstrip().rstrip(",") + "]")
    return found


def test_the_answer_is_the_same_streamed_or_not_and_the_trace_shows_each_stage(tmp_path: Path) -> None:
    whole = by_hand()
    short = by_hand("--budget", "60", NVSTREAM_TRACE=str(tmp_path / "trace.json"))
    assert whole.returncode == short.returncode == 0, whole.stderr + short.stderr
    assert whole.stdout == short.stdout and len(whole.stdout.strip()) > 5
    assert "a pass took" in short.stderr and "kernel C++" in short.stderr and "arithmetic" in short.stderr
    found = events(tmp_path)
    names = Counter(event["name"] for event in found)
    passes = sum(count for name, count in names.items() if name.endswith(" rows"))
    assert passes == 6 and all(names[f"layer.{number}"] == passes for number in range(LAYERS))
    reads = [event for event in found if event["name"].startswith("read ")]
    asked = sum(event["args"]["streamed_bytes"] for event in found if event["name"].endswith(" rows"))
    assert sum(event["args"]["bytes"] for event in reads) >= asked > 0
    assert all(event["dur"] >= 0 for event in found if event["ph"] == "X")


def test_a_trace_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NVSTREAM_TRACE", "/nonexistent/trace.json")
    assert main([str(SMOLLM2), "--tokens", "1", "--kernel", "cpu"]) == 0
    assert "no trace: /nonexistent/trace-" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value", "hint"), [
    ("--budget", "1", "the smallest that works"), ("--prompt", "", "give a prompt")])
def test_an_error_comes_with_its_hint(capsys: pytest.CaptureFixture[str], option: str, value: str, hint: str) -> None:
    assert main([str(SMOLLM2), option, value]) == 1
    assert hint in capsys.readouterr().err


def test_a_trace_fills_no_drive_and_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_BYTES", 100_000)
    with ExitStack() as stack:
        written = Trace(tmp_path / "trace.json")
        written.open(stack)
        for number in range(5000):
            written.event("track", f"event {number}", number, number + 1)
    assert 0 < (tmp_path / "trace.json").stat().st_size <= 100_100
    (tmp_path / f"there-{os.getpid()}.json").symlink_to(tmp_path / "victim")
    with ExitStack() as stack:
        none, notes = open_trace({"NVSTREAM_TRACE": str(tmp_path / "there.json")}, stack)
    assert none is None and "no trace" in notes[0] and not (tmp_path / "victim").exists()
