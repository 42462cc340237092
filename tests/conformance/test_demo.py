"""Does the demo, a newcomer's first command, end by itself and show what it promises?"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.files import ROOT


@pytest.mark.slow
def test_the_demo_streams_more_than_its_ceiling() -> None:
    done = subprocess.run([sys.executable, "scripts/demo.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "blue" in done.stdout
    ceiling = re.search(r"ceiling\D+([\d.]+) MiB; in memory at most ([\d.]+) MiB", done.stdout)
    streamed = re.search(r"streamed\D+(\d+) MiB", done.stdout)
    model = re.search(r"model\D+([\d.]+) MiB of weights", done.stdout)
    assert ceiling is not None and streamed is not None and model is not None, done.stdout
    assert float(ceiling[2]) <= float(ceiling[1]) <= 60 < float(model[1]) < float(streamed[1])
    for figure in ("pass predicted", "pass measured"):
        found = re.search(rf"{figure}\D+(\d+) ms", done.stdout)
        assert found is not None and int(found[1]) > 0, done.stdout
