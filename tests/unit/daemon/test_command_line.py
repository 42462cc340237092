"""Does the command `nvstreamd` say what it is?"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from nvstreamd.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["nvstreamd", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert not ended.value.code
    assert capsys.readouterr().out == f"nvstreamd {version}\n"
