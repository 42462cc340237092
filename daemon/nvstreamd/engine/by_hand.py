"""How is an engine run by hand, without a daemon? A model file in, text and figures out: to debug and to profile.

    python -m nvstreamd.engine.by_hand MODEL.gguf [--prompt TEXT] [--tokens N] [--budget MIB] [--kernel gpu|cpu|torch]

It is the daemon's engine but for the wire, the walls, the other users and guesses: the same load and greedy tokens.
NVSTREAM_TRACE=FILE works as it does there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import Loaded, Wishes, load, placement_message
from nvstreamd.engine.on_card import card_wishes
from nvstreamd.engine.output import Output
from nvstreamd.engine.prompts import load_tokenizer
from nvstreamd.engine.request import Request
from nvstreamd.engine.sampling import Sampling, choose
from nvstreamd.engine.scheduler import Scheduler
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.errors import InvalidRequest, NvstreamError
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.trace import open_trace
from nvstreamd.weights.packed.files import open_all

MIB = 1 << 20


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m nvstreamd.engine.by_hand", description=__doc__)
    parser.add_argument("model", nargs="+", type=Path, help="a GGUF, or all parts of one")
    parser.add_argument("--prompt", default="The sky is", help="text, as it is, without a template")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--budget", type=int, help="MiB of weights in memory at most; all of them if not given")
    parser.add_argument("--kv", type=int, default=64, help="MiB for keys and values")
    parser.add_argument("--kernel", choices=("gpu", "cpu", "torch"), default="cpu")
    parser.add_argument("--vram", type=int, default=0, help="MiB of a card's memory at most; what is free if not given")
    parser.add_argument("--backend", default="uring,pread", help="in order of preference, with commas between")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def answer(loaded: Loaded, tokenizer: Tokenizer, prompt: Sequence[int], tokens: int) -> float:
    """Writes what follows the prompt to standard output, token by token; the seconds that it took."""
    scheduler = Scheduler(loaded.kv_cache(), 1, loaded.pacing(None, 0))
    output = Output(tokenizer.detokenizer(), ())
    limit = min(loaded.pages[0] * PAGE_TOKENS, len(prompt) + tokens)
    request = Request(0, os.getuid(), list(prompt), len(prompt), limit, tokens, Sampling(), output)
    scheduler.add(request)
    began = time.monotonic()
    while len(request.tokens) < limit:
        work = scheduler.next_pass()
        computed = loaded.runner.run(work)
        scheduler.computed(work, computed.cost.seconds)
        loaded.expectation.saw(computed.cost, decode=work[0].count == 1)
        if not work[0].samples:
            continue
        token = choose(computed.scores[0][: tokenizer.vocab_size], request.tokens, request.sampling, None, len(prompt))
        if token in tokenizer.eog_ids:
            break
        request.tokens.append(token)
        piece = output.push(token)
        sys.stdout.write(piece.text if piece else "")
        sys.stdout.flush()
    rest = output.flush()
    sys.stdout.write((rest.text if rest else "") + "\n")
    return time.monotonic() - began


def report(loaded: Loaded, seconds: float) -> None:
    """Writes to standard error what was in use, what a pass took, and what it should have taken."""
    placement, expectation = placement_message(loaded), loaded.expectation
    lines = [f"kernel {placement.kernel}, arithmetic {placement.arithmetic}, path {placement.backend}",
             f"{placement.resident_bytes / MIB:.1f} MiB resident, {placement.slot_bytes / MIB:.1f} MiB for streaming",
             f"{seconds:.2f} s in all", *placement.notes]
    if expectation.measured_seconds is not None and expectation.predicted_seconds is not None:
        lines.append(f"a pass took {expectation.measured_seconds * 1e3:.1f} ms, "
                     f"{expectation.predicted_seconds * 1e3:.1f} ms were expected")
    sys.stderr.writelines(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 after an error, which is told with its hint."""
    chosen = parsed(arguments)
    try:
        with ExitStack() as stack:
            model = read_model(open_all(chosen.model, stack))
            tokenizer = load_tokenizer(str(chosen.model[0]), model.manifest.metadata, model.hyper.vocabulary)
            prompt = tokenizer.encode(chosen.prompt, add_special=True, parse_special=False)
            if not prompt or chosen.tokens < 1:
                raise InvalidRequest("there is nothing to compute", "give a prompt of a token at least, and --tokens")
            whole = sum(path.stat().st_size for path in chosen.model)
            trace, notes = open_trace(os.environ, stack)
            budget = chosen.budget * MIB if chosen.budget else whole
            wishes = Wishes(budget + chosen.kv * MIB, budget, chosen.kv * MIB, 1,
                            tuple(chosen.backend.split(",")), (chosen.kernel,), chosen.threads,
                            card=card_wishes(chosen.vram * MIB))
            loaded = load(model, wishes, stack, trace)
            seconds = answer(loaded, tokenizer, prompt, chosen.tokens)
            report(loaded, seconds)
            sys.stderr.writelines(f"{note}\n" for note in notes)
    except NvstreamError as error:
        sys.stderr.write(f"{error} ({error.hint})\n" if error.hint else f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
