"""How far is the time that a pass was expected to take from what it took? SmolLM2 under budgets of three sizes."""

from __future__ import annotations

from contextlib import ExitStack

from bench.serving import MODEL, decode_rate, serve
from support.files import SMOLLM2

TOKENS = 128
KEYS = {f"prediction_error_{name}": name for name in ("resident", "half", "minimum")}


def prediction_errors(threads: int) -> tuple[dict[str, float], dict[str, str]]:
    """{key: distance of the median expected from the median measured, as a part of it}, and lines with both."""
    size = SMOLLM2.stat().st_size
    errors, lines = {}, {}
    with ExitStack() as stack:
        daemon = serve(SMOLLM2, stack, ["--threads", str(threads)])
        least = daemon.load(MODEL, size).facts.minimum_budget
        daemon.unload(MODEL)
        for key, name in KEYS.items():
            daemon.load(MODEL, {"resident": size, "half": size // 2, "minimum": least}[name])
            decode_rate(daemon, 1, TOKENS)
            daemon.wait("the last passes to be told", lambda: daemon.engine(MODEL).running == 0)
            placement = daemon.engine(MODEL).model.placement
            expected, measured = placement.predicted_pass_seconds, placement.measured_pass_seconds
            errors[key] = abs(expected - measured) / measured
            daemon.unload(MODEL)
            lines[f"pass expected, measured, ms: {name}"] = f"{expected * 1e3:.1f}, {measured * 1e3:.1f}"
    return errors, lines
