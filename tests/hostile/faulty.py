"""What do tests ask of a model whose engine they made fail, and of what it says then?"""

from __future__ import annotations

import grpc

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from nvstream.v1.status_pb2 import EngineStatus
from support.daemon import DEADLINE, Daemon

PROMPT = [5, 6, 7]
SECRET = "my secret words"
# Where the frames of the main thread keep what a sabotage wants.
FIND = """
import sys, threading
frame = sys._current_frames()[threading.main_thread().ident]
while frame.f_code.co_qualname != "Loop.serve":
    frame = frame.f_back
loop = frame.f_locals["self"]
"""


def ids_of(daemon: Daemon, tokens: int = 8) -> list[int]:
    """What the model says after PROMPT."""
    found = daemon.generate("m", PROMPT, max_tokens=tokens, ignore_eos=True)
    assert found.error is None, found.error
    return found.ids


def await_another(daemon: Daemon, before: EngineStatus) -> None:
    """Returns when the model is served by the engine after that."""
    daemon.wait("another engine", lambda: daemon.engine("m").pid not in (0, before.pid)
                and daemon.engine("m").model.state == models.MODEL_STATE_SERVING)
    assert daemon.engine("m").restarts == before.restarts + 1


def tokenize(daemon: Daemon, text: str) -> list[int]:
    """The ids of a text."""
    request = inference.TokenizeRequest(model="m", text=text)
    return list(daemon.inference.Tokenize(request, timeout=DEADLINE).token_ids)


def code_and_text(error: grpc.RpcError | None) -> tuple[grpc.StatusCode, str]:
    """An error's status and text."""
    assert error is not None
    return error.code(), str(error.details())
