"""Does it work on this machine? A real model answers over gRPC while its weights stream under a ceiling.

Starts a daemon of its own, asks three questions at once, prints the tokens as they come, and closes with what it cost.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1.inference_pb2_grpc import InferenceStub
from nvstream.v1.models_pb2 import MODEL_STATE_FAILED, MODEL_STATE_LOADING, MODEL_STATE_SERVING
from nvstream.v1.status_pb2 import EngineStatus, GetStatusRequest
from nvstream.v1.status_pb2_grpc import StatusStub

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 28
START_SECONDS = 60.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Shown:
    """A model that can be shown: its file, the ceiling of weights and KV cache, what it is asked.

    One that was made for conversations is asked `questions`; another goes on with them.
    """

    path: Path
    budget: str
    questions: tuple[str, ...]
    converses: bool


SHOWN = {
    "smollm2": Shown(ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf", "60MiB", (
        "What colour is the sky?", "What is 2 + 2?", "Name three primary colours."), converses=True),
    "gemma3": Shown(ROOT / "build/models/gemma-3-270m-q4_k_m.gguf", "120MiB", (
        "The capital of France is", "Two plus two is", "The three primary colours are"), converses=False),
}


@dataclass(slots=True)
class Answer:
    """What came back for one question."""

    text: str = ""
    tokens: int = 0
    usage: inference.Usage = field(default_factory=inference.Usage)


@contextmanager
def daemon(directory: Path, shown: Shown) -> Iterator[grpc.Channel]:
    """A daemon on a socket of its own, and a channel to it once the model serves."""
    socket = directory / "nvstreamd.sock"
    log = directory / "daemon.log"
    command = [sys.executable, "-m", "nvstreamd", "--socket", str(socket), "--store", str(directory / "store"),
               "--memory", shown.budget, "--model", f"shown={shown.path}"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                wait_until_serving(channel, process, log)
                yield channel
        finally:
            process.terminate()


def wait_until_serving(channel: grpc.Channel, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the model answers; ends the demo with the daemon's log when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            engines = StatusStub(channel).GetStatus(GetStatusRequest(), wait_for_ready=True, timeout=1).engines
        except grpc.RpcError:
            continue
        state = engines[0].model.state if engines else MODEL_STATE_LOADING
        if state == MODEL_STATE_SERVING:
            return
        if state == MODEL_STATE_FAILED:
            break
        time.sleep(0.1)
    sys.exit(f"demo: the daemon did not start:\n{log.read_text()}")


def stream(channel: grpc.Channel, question: str, *, converses: bool) -> Iterator[inference.StreamEvent]:
    """The events of one answer."""
    stub = InferenceStub(channel)
    options = inference.Options(max_tokens=TOKENS, sampling=inference.Sampling(temperature=0))
    if not converses:
        request = inference.GenerateRequest(model="shown", text=question, options=options)
        return stub.Generate(request, timeout=START_SECONDS)
    message = inference.ChatMessage(role="user", content=question)
    return stub.Chat(inference.ChatRequest(model="shown", messages=[message], options=options), timeout=START_SECONDS)


def ask(channel: grpc.Channel, question: str, answer: Answer, echo: Console | None, *, converses: bool) -> None:
    """Streams one answer; with `echo`, token by token onto the screen."""
    for event in stream(channel, question, converses=converses):
        kind = event.WhichOneof("event")
        if kind == "delta":
            answer.text += event.delta.text
            answer.tokens += len(event.delta.token_ids)
            if echo is not None:
                echo.out(event.delta.text, end="", highlight=False)
        elif kind == "finished":
            answer.usage.CopyFrom(event.finished.usage)


def ask_all(channel: grpc.Channel, console: Console, shown: Shown) -> list[Answer]:
    """All questions at once: one pass over the weights serves all of them."""
    answers = [Answer() for _ in shown.questions]
    threads = [
        threading.Thread(target=ask, args=(channel, question, answer, None), kwargs={"converses": shown.converses})
        for question, answer in zip(shown.questions[1:], answers[1:], strict=True)
    ]
    for thread in threads:
        thread.start()
    console.print(f"[bold]{shown.questions[0]}[/bold]")
    ask(channel, shown.questions[0], answers[0], console, converses=shown.converses)
    for thread in threads:
        thread.join()
    for question, answer in zip(shown.questions[1:], answers[1:], strict=True):
        console.print(f"\n[bold]{question}[/bold]  (asked at the same time)\n{answer.text}", highlight=False)
    return answers


def closing_table(engine: EngineStatus, tokens: int, users: int, seconds: float) -> Table:
    """What it cost."""
    placement = engine.model.placement
    table = Table(show_header=False, title="what it cost")
    rows = (
        ("model", f"{engine.model.facts.weight_bytes / MIB:.1f} MiB of weights"),
        ("ceiling", f"{placement.budget / MIB:.1f} MiB; in memory at most {engine.peak_weight_bytes / MIB:.1f} MiB"),
        ("streamed", f"{engine.streamed_bytes / MIB:.0f} MiB through {placement.backend}, kernel {placement.kernel}"),
        ("passes", f"{engine.passes} over the weights for {tokens} tokens of {users} users"),
        ("speed", f"{tokens / seconds:.1f} tokens/s"),
        ("pass predicted", f"{placement.predicted_pass_seconds * 1000:.0f} ms"),
        ("pass measured", f"{placement.measured_pass_seconds * 1000:.0f} ms"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    """The demo; ends by itself."""
    console, shown = Console(), SHOWN[sys.argv[1] if len(sys.argv) > 1 else "smollm2"]
    size = shown.path.stat().st_size / MIB
    console.print(f"{shown.path.name}: {size:.1f} MiB, under a ceiling of {shown.budget}\n")
    with tempfile.TemporaryDirectory() as scratch, daemon(Path(scratch), shown) as channel:
        start = time.monotonic()
        answers = ask_all(channel, console, shown)
        seconds = time.monotonic() - start
        engine = StatusStub(channel).GetStatus(GetStatusRequest()).engines[0]
    if not all(answer.tokens for answer in answers):
        sys.exit("demo: an answer is empty")
    console.print()
    console.print(closing_table(engine, sum(answer.tokens for answer in answers),
                                len(answers), seconds))


if __name__ == "__main__":
    main()
