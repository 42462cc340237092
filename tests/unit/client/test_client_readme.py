"""Do the README's Python examples run as they stand?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.peer import Peer

README = Path(__file__).parents[3] / "clients" / "python" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(peer: Peer, monkeypatch: pytest.MonkeyPatch, capsys: Any, example: str) -> None:
    monkeypatch.setenv("NVSTREAM_SOCKET", str(peer.path))
    prefill = samples.progress(inference_pb2.PHASE_PREFILL, 5, 12)
    for method in ("Generate", "Chat"):
        peer.script(method, prefill, samples.delta("there was"), samples.finished())
    peer.script("Load", models_pb2.LoadResponse(model=samples.serving()))
    peer.script("List", models_pb2.ListResponse(models=[samples.serving()]))
    exec(compile(example, str(README), "exec"), {"__name__": "example"})
    assert "there was" in capsys.readouterr().out or "def patient" in example


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
