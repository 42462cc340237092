"""Does the tree hold its own rules? The linters, run as tests."""

from __future__ import annotations

import json
import os
import re
import shutil
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
    # CI runs no bench: what one says that no module has any more is found here.
    "mypy-benches": [str(BIN / "mypy"), "--follow-imports=silent", "tests/bench"],
    "import-linter": [str(BIN / "lint-imports")],
    "buf": [str(BIN / "buf"), "lint", "proto"],
    "buf-breaking": [str(BIN / "buf"), "breaking", "proto", "--against", "proto/frozen.txtpb"],
    "protos": [sys.executable, "scripts/generate_protos.py", "--check"],
}


@pytest.mark.parametrize("tool", COMMANDS)
def test_linter_finds_nothing(tool: str) -> None:
    done = subprocess.run(COMMANDS[tool], cwd=ROOT, env=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# What a client of yesterday would misread: pattern, what takes its place, and the rule of buf that says so.
BREAKS = {
    "a field with another number": ("models.proto", r"repeated string notes = 9;", "repeated string notes = 90;",
                                    "FIELD_NO_DELETE"),
    "two fields exchanged": ("inference.proto", r"string model = 1;(.*?) = 2;", r"string model = 2;\1 = 1;",
                             "FIELD_SAME"),
    "a field of another type": ("status.proto", r"repeated string notes = 6;", "string notes = 6;", "FIELD_SAME"),
    "a field that is gone": ("status.proto", r"  repeated string notes = 6;\n", "", "FIELD_NO_DELETE"),
    "a method that is gone": ("models.proto", r"  rpc Unload\(.*?\n", "", "RPC_NO_DELETE"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_clients_of_the_frozen_protocol_is_found(tmp_path: Path, name: str) -> None:
    file, old, new, rule = BREAKS[name]
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    changed = tmp_path / "proto/nvstream/v1" / file
    text, count = re.subn(old, new, changed.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, f"{file} has no {old} any more: change this test"
    changed.write_text(text)
    command = [*COMMANDS["buf-breaking"], "--error-format=json"]
    done = subprocess.run(command, cwd=tmp_path, env=SOURCES, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode and any(each["type"].startswith(rule) and each["path"].endswith(file) for each in found), (
        done.stdout + done.stderr)


def test_the_protocol_may_grow(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    grown = tmp_path / "proto/nvstream/v1/status.proto"
    old = "  repeated string notes = 6;\n"
    assert old in grown.read_text()
    grown.write_text(grown.read_text().replace(old, old + "  string one_more = 1000;\n", 1))
    subprocess.run(COMMANDS["buf-breaking"], cwd=tmp_path, env=SOURCES, check=True)


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
