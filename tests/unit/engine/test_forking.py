"""Do the tests that fork their process pass in one of their own, as an engine is?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.files import ROOT

SECONDS = 600


def test_in_a_process_of_their_own() -> None:
    folder = Path(__file__).with_name("forking")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)], cwd=ROOT,
                          env={**os.environ, "NVSTREAM_FORKING": "1"}, capture_output=True, text=True,
                          timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
