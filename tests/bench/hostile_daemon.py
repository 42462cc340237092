"""Which daemon does bench.hostile attack, and what does it ask of it? The real model, resident, for every user."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from nvstream.v1 import inference_pb2 as inference
from support.daemon import Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20
MODEL = SMOLLM2.stem


@contextmanager
def daemon(settings: str = "", kv_budget: int | None = None) -> Iterator[Daemon]:
    """A daemon that serves the real model, resident, to every user."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        config = directory / "nvstreamd.toml"
        config.write_text(f'model_directories = ["{SMOLLM2.parent}"]\n{settings}')
        with running(directory, "--config", str(config)) as started:
            started.load(MODEL, 200 * MIB, kv_budget=kv_budget)
            yield started


def shown(values: Sequence[float], unit: str, factor: float = 1.0) -> str:
    """Median and range of some values."""
    scaled = [value * factor for value in values]
    return f"{statistics.median(scaled):.1f} {unit} ({min(scaled):.1f} to {max(scaled):.1f})"


def resident(served: Daemon) -> float:
    """MiB of the daemon's process (proc_pid_status(5), VmRSS)."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def kill_at_work(served: Daemon, prompt: str) -> str:
    """Sends a request and kills every engine that says that it works on it; what became of the request."""
    killed: set[int] = set()
    try:
        for event in served.open(MODEL, prompt, max_tokens=5):
            engine = served.engine(MODEL)
            within = event.HasField("progress") and event.progress.phase == inference.PHASE_PREFILL
            if within and engine.running and engine.pid not in killed:
                killed.add(engine.pid)
                os.kill(engine.pid, signal.SIGKILL)
    except grpc.RpcError as error:
        return f"{error.code().name}"
    return "an answer"
