"""Does the tree hold its own rules? The linters, run as tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON_TREES = ["daemon", "dma", "clients/python", "scripts", "tests"]
SOURCES = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}

COMMANDS = {
    "ruff": [str(BIN / "ruff"), "check", *PYTHON_TREES],
    "mypy": [str(BIN / "mypy")],
    "import-linter": [str(BIN / "lint-imports")],
    "buf": [str(BIN / "buf"), "lint", "proto"],
    "protos": [sys.executable, "scripts/generate_protos.py", "--check"],
}


@pytest.mark.parametrize("tool", COMMANDS)
def test_linter_finds_nothing(tool: str) -> None:
    done = subprocess.run(COMMANDS[tool], cwd=ROOT, env=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_with(modules: str) -> set[str]:
    """What a process has loaded that imports these."""
    script = f"import json, sys, {modules}; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_root_process_imports_neither_torch_nor_a_model_parser() -> None:
    """The daemon runs as root: what parses model files or computes must not be loaded into it."""
    loaded = loaded_with("nvstreamd.__main__, nvstreamd.app")
    assert not loaded & {"torch", "cupy", "tokenizers", "llguidance", "numpy", "jinja2", "nvstreamd.engine"}


def test_commands_answer_without_what_only_serving_or_the_doctor_needs() -> None:
    """`recover` runs each time the service has ended."""
    assert not loaded_with("nvstreamd.__main__") & {"grpc", "numpy", "nvstreamd.app", "nvstreamd.doctor.examine"}


def test_an_engine_imports_neither_grpc_nor_asyncio() -> None:
    """It speaks over a socket pair; each start of one would wait for them, and each engine keep them in memory."""
    loaded = loaded_with("nvstreamd.engine.__main__, nvstreamd.engine.service")
    assert not loaded & {"grpc", "asyncio", "ssl", "nvstream.client", "nvstream.aio"}


@pytest.mark.parametrize("tree", ["daemon", "dma", "clients/python", "scripts", "tests"])
def test_every_file_says_which_question_it_answers(tree: str) -> None:
    for path in (ROOT / tree).rglob("*.py"):
        if "_pb2" in path.name or ".venv" in path.parts:
            continue
        first = path.read_text().split("\n", 1)[0]
        assert first.startswith('"""'), f"{path}: the first line is no docstring"
