"""How many tokens a second do clients of a real daemon get, and what memory does it take beside the weights?"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from support.daemon import Daemon, running

MODEL = "model"
STREAM_SECONDS = 600.0
FIRST_PLAIN = 100
KV = 256 << 20


def serve(path: Path, stack: ExitStack, arguments: Sequence[str], config: str = "",
          environment: dict[str, str] | None = None) -> Daemon:
    """A daemon that offers the file as `model`; it may have memory for all of it, and for a KV cache."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    models, settings = directory / "models", directory / "nvstreamd.toml"
    models.mkdir()
    (models / f"{MODEL}.gguf").symlink_to(path)
    settings.write_text(config)
    return stack.enter_context(running(directory, "--config", str(settings), "--memory", str(path.stat().st_size + KV),
                                       "--model-directory", str(models), *arguments, environment=environment))


def decode_rate(daemon: Daemon, users: int, tokens: int) -> float:
    """Tokens a second of all streams together while all of them decode, from each one's second token on."""
    def read(user: int) -> list[tuple[float, int]]:
        stream = daemon.open(MODEL, [user + 1, 2, 3], STREAM_SECONDS, max_tokens=tokens + 1, ignore_eos=True,
                             speculation=False)
        return [(time.perf_counter(), len(event.delta.token_ids)) for event in stream if event.HasField("delta")]

    with ThreadPoolExecutor(users) as pool:
        streams = [arrivals[1:] for arrivals in pool.map(read, range(users))]
    begin, end = max(arrivals[0][0] for arrivals in streams), min(arrivals[-1][0] for arrivals in streams)
    rate = 0.0
    for arrivals in streams:
        shared = [(at, count) for at, count in arrivals if begin <= at <= end]
        assert len(shared) > 1, f"{users} streams of {tokens} tokens hardly ran at the same time"
        rate += sum(count for _, count in shared[1:]) / (shared[-1][0] - shared[0][0])
    return rate


def prefill_rate(daemon: Daemon, tokens: int, draw: random.Random) -> float:
    """Prompt tokens a second, from the request to the first token; the prompt is new to the prefix cache."""
    vocabulary = daemon.engine(MODEL).model.facts.vocabulary_size
    prompt = [draw.randrange(FIRST_PLAIN, vocabulary) for _ in range(tokens)]
    start = time.perf_counter()
    events = daemon.open(MODEL, prompt, STREAM_SECONDS, max_tokens=1, ignore_eos=True)
    seconds = next(time.perf_counter() - start for event in events if event.HasField("delta"))
    usage = next(event.finished.usage for event in events if event.HasField("finished"))
    assert usage.cached_tokens == 0, "the prefix cache answered a prompt that should be new"
    return tokens / seconds


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    return [pid] + [each for child in children for each in family(child)]


def memory_besides(daemon: Daemon, tokens: int) -> int:
    """Bytes of daemon and engine but for weights and KV cache: proportional set sizes (proc(5), smaps_rollup), the
    mapped pages of libraries among them. `tokens` is how many the model has taken in since it was loaded."""
    model = daemon.engine(MODEL).model
    total = 0
    for pid in family(daemon.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    weights = model.placement.resident_bytes + model.placement.slot_bytes
    return total - weights - tokens * model.facts.kv_bytes_per_token
