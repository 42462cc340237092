"""What does `nvstreamd doctor` print and return on a machine like this one, whatever that has?"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nvstreamd.__main__ import main

DESIGN = ["pread", "uring", "cufile", "p2pdma", "nvme_host", "nvme_vram", "gpu_doorbell"]


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Everything below a directory of the test's."""
    path = tmp_path / "nvstreamd.toml"
    path.write_text(f'store = "{tmp_path}/store"\nclaims = "{tmp_path}/claims"\n')
    return path


def doctor(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> tuple[int, str]:
    """Exit status and what was printed."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["nvstreamd", "doctor", *map(str, arguments)])
    with redirect_stdout(printed):
        status = main()
    return status, printed.getvalue()


def test_every_path_has_its_line_and_files_can_be_served(
    monkeypatch: pytest.MonkeyPatch, configuration: Path, tmp_path: Path
) -> None:
    status, text = doctor(monkeypatch, "--config", configuration, "--probe")
    assert status == 0
    starts = [line.split()[0] for line in text.split("\n\n")[1].splitlines() if not line.startswith(" ")]
    assert starts == DESIGN
    assert "pread         available" in text and "probe pread" in text and "MB/s" in text
    assert list(tmp_path.iterdir()) == [configuration], "something was left behind"


def test_programs_read_the_same(monkeypatch: pytest.MonkeyPatch, configuration: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(bytes(5000))
    status, text = doctor(monkeypatch, "--config", configuration, "--json", "--probe", tmp_path / "model")
    found = json.loads(text)
    assert status == 0 and found["serves"] and [each["path"] for each in found["paths"]] == DESIGN
    assert [each["device"] for each in found["devices"]] == ["gpu"]
    assert found["machine"]["kernel"] and {each["nbytes"] for each in found["probes"]} == {5000}


def test_a_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, configuration: Path) -> None:
    assert doctor(monkeypatch, "--config", configuration, "--probe", "/no/such/file") == (1, "")


def test_a_claim_that_cannot_be_read_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, configuration: Path, tmp_path: Path
) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/0000:01:00.0-LAB0.claim").write_text("torn")
    status, text = doctor(monkeypatch, "--config", configuration)
    assert status == 0 and "this claim cannot be read" in text and "bring the drive back by hand" in text


def test_nothing_that_computes_is_loaded_for_it(configuration: Path) -> None:
    script = ("import sys; from nvstreamd.__main__ import main; "
              f"sys.argv = ['nvstreamd', 'doctor', '--config', {str(configuration)!r}]; main(); "
              "sys.exit(sorted({'numpy', 'torch', 'grpc', 'cupy', 'cuda.bindings'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
