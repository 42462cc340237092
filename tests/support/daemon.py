"""How does a test start a real daemon, and what does it ask of it?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from nvstream.v1.inference_pb2_grpc import InferenceStub
from nvstream.v1.models_pb2_grpc import ModelsStub
from nvstream.v1.status_pb2 import EngineStatus, GetStatusRequest, GetStatusResponse
from nvstream.v1.status_pb2_grpc import StatusStub

DEADLINE = 120.0
LOOK_SECONDS = 0.01
TESTS = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Collected:
    """Everything one stream brought."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[inference.TokenLogprob] = field(default_factory=list)
    events: list[inference.StreamEvent] = field(default_factory=list)
    error: grpc.RpcError | None = None

    @property
    def finished(self) -> inference.Finished:
        """The last event; a stream that ended without it fails the test here."""
        assert self.error is None, self.error
        assert self.events[-1].WhichOneof("event") == "finished"
        return self.events[-1].finished

    def details(self) -> dict[str, Message]:
        """The google.rpc details of the error, by message name."""
        assert self.error is not None
        status = rpc_status.from_call(self.error)
        assert status is not None, self.error
        found: dict[str, Message] = {}
        for packed in status.details:
            message = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
            packed.Unpack(message)
            found[message.DESCRIPTOR.name] = message
        return found

    def take(self, event: inference.StreamEvent) -> None:
        """Adds an event."""
        self.events.append(event)
        if event.WhichOneof("event") == "delta":
            self.ids += event.delta.token_ids
            self.text += event.delta.text
            self.logprobs += event.delta.logprobs


@dataclass(slots=True)
class Daemon:
    """A running daemon and stubs for it."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path
    channel: grpc.Channel

    @property
    def inference(self) -> InferenceStub:
        """nvstream.v1.Inference."""
        return InferenceStub(self.channel)

    @property
    def models(self) -> ModelsStub:
        """nvstream.v1.Models."""
        return ModelsStub(self.channel)

    def status(self) -> GetStatusResponse:
        """What the daemon says of itself."""
        return StatusStub(self.channel).GetStatus(GetStatusRequest(), timeout=DEADLINE)

    def engine(self, name: str) -> EngineStatus:
        """The status of a loaded model's engine."""
        return next(engine for engine in self.status().engines if engine.model.name == name)

    def load(self, name: str, budget: int, backend: str | None = None, kv_budget: int | None = None) -> models.Model:
        """Loads a model."""
        request = models.LoadRequest(model=name, budget=budget, backend=backend, kv_budget=kv_budget)
        return self.models.Load(request, timeout=DEADLINE).model

    def unload(self, name: str) -> None:
        """Unloads a model."""
        self.models.Unload(models.UnloadRequest(model=name), timeout=DEADLINE)

    def generate(self, model: str, prompt: str | Sequence[int], timeout: float = DEADLINE,
                 **options: object) -> Collected:
        """One whole stream; greedy unless a temperature is given."""
        collected = Collected()
        try:
            for event in self.open(model, prompt, timeout, **options):
                collected.take(event)
        except grpc.RpcError as error:
            collected.error = error
        return collected

    def open(self, model: str, prompt: str | Sequence[int], timeout: float = DEADLINE,
             **options: object) -> grpc.CallIterator[inference.StreamEvent]:
        """A stream that is still open."""
        return self.inference.Generate(generate_request(model, prompt, **options), timeout=timeout)

    def generate_all(self, model: str, prompts: Sequence[str | Sequence[int]], **options: object) -> list[Collected]:
        """All prompts at once."""
        results: list[Collected] = [Collected() for _ in prompts]

        def one(number: int) -> None:
            results[number] = self.generate(model, prompts[number], **options)  # type: ignore[arg-type]

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def wait(self, what: str, condition: object, seconds: float = DEADLINE) -> None:
        """Looks until `condition` holds; fails saying what was waited for.

        What it waits for between two looks is the daemon's end: a loop would take a processor from those who work.
        """
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LOOK_SECONDS)
            assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}:\n{self.log.read_text()}"


def generate_request(model: str, prompt: str | Sequence[int], **options: object) -> inference.GenerateRequest:
    """A Generate request; sampling fields and options by name."""
    sampling = {key: options.pop(key) for key in list(options) if key in inference.Sampling.DESCRIPTOR.fields_by_name}
    sampling.setdefault("temperature", 0)
    message = inference.Options(sampling=inference.Sampling(**sampling), **options)  # type: ignore[arg-type]
    if isinstance(prompt, str):
        return inference.GenerateRequest(model=model, text=prompt, options=message)
    return inference.GenerateRequest(model=model, token_ids=inference.TokenIds(ids=prompt), options=message)


@contextmanager
def running(directory: Path, *arguments: str, environment: dict[str, str] | None = None,
            module: str = "nvstreamd", prefix: Sequence[str] = ()) -> Iterator[Daemon]:
    """A daemon in `directory`, answering; ended by SIGTERM. `module` is what starts it, `prefix` a command before."""
    directory.mkdir(parents=True, exist_ok=True)
    socket, log = directory / "nvstreamd.sock", directory / "daemon.log"
    command = [*prefix, sys.executable, "-m", module, "--socket", str(socket), "--store", str(directory / "store"),
               *arguments]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(environment or {})})
    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            daemon = Daemon(process, socket, log, channel)
            daemon.wait("the daemon to listen", socket.exists)
            StatusStub(channel).GetStatus(GetStatusRequest(), wait_for_ready=True, timeout=DEADLINE)
            yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=DEADLINE)


@contextmanager
def running_on(machine: Path, directory: Path, *arguments: str) -> Iterator[Daemon]:
    """A daemon on a machine that is a tree of files (support.recorded_daemon)."""
    places = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"NVSTREAM_MACHINE": str(machine), "PYTHONPATH": os.pathsep.join(places)}
    with running(directory, *arguments, environment=environment, module="support.recorded_daemon") as daemon:
        yield daemon
