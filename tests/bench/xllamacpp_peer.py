"""How fast is llama.cpp where no native build was made? The wheel xllamacpp behind the commands of llamacpp_peer.cpp.

    python -m bench.xllamacpp_peer MODEL THREADS default|mapped

Struct offsets are those that `support.llamacpp` checks at every start.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np

from support.llamacpp import LlamaCpp, LlamaCppError, _library

BATCH = 512
PROMPT = 3
STRIDE = 4999
N_SEQ_MAX, N_OUTPUTS_PER_SEQ, EXTRA_BUFFERS = 12, 24, 74
LOAD_MODE = 24
MMAP = 1


class Timed(LlamaCpp):
    """A model that stays loaded, and the context of the last command."""

    def __init__(self, path: Path, threads: int, mapped: bool) -> None:
        self._c = _library().c
        self._c.llama_get_memory.restype, self._c.llama_get_memory.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        self._c.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        params = self._c.llama_model_default_params()
        if mapped:
            struct.pack_into("<i", params.raw, LOAD_MODE, MMAP)
            params.raw[EXTRA_BUFFERS] = 0
        self._model = self._c.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LlamaCppError(f"llama.cpp does not load {path}")
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self._threads = threads
        self._batch = self._c.llama_batch_init(BATCH, 0, 1)
        self._command: tuple[str, int, int] | None = None
        self._context = 0

    def run(self, name: str, sequences: int, tokens: int) -> dict[str, float]:
        """Tokens and seconds; a new context runs its command once before."""
        if self._command != (name, sequences, tokens):
            self._make_context(sequences, tokens)
            self._command = (name, sequences, tokens)
            self._once(name, sequences, tokens)
        return self._once(name, sequences, tokens)

    def _make_context(self, sequences: int, tokens: int) -> None:
        if self._context:
            self._c.llama_free(self._context)
        params = self._context_params(sequences * (PROMPT + tokens + 1), self._threads, BATCH)
        struct.pack_into("<I", params.raw, N_SEQ_MAX, sequences)
        struct.pack_into("<I", params.raw, N_OUTPUTS_PER_SEQ, 1)
        self._context = self._c.llama_init_from_model(self._model, params)
        if not self._context:
            raise LlamaCppError("llama.cpp makes no context for this model")

    def _once(self, name: str, sequences: int, tokens: int) -> dict[str, float]:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        return self._steps(sequences, tokens) if name == "decode" else self._prefill(tokens)

    def _pass(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """One llama_decode of (token, position, sequence, output) rows; the likeliest token of every output."""
        batch = self._batch
        for i, (token, position, sequence, output) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, output
        batch.n_tokens = len(rows)
        status = self._c.llama_decode(self._context, batch)
        if status:
            raise LlamaCppError(f"llama_decode: status {status}")
        logits = (self._c.llama_get_logits_ith(self._context, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(row, (len(self),)).argmax()) for row in logits]

    def _steps(self, sequences: int, tokens: int) -> dict[str, float]:
        chosen = self._pass([(sequence + 1 if i == 0 else i + 1, i, sequence, i == PROMPT - 1)
                             for sequence in range(sequences) for i in range(PROMPT)])
        start = 0.0
        for step in range(tokens):
            if step == 1:
                start = time.perf_counter()
            chosen = self._pass([(token, PROMPT + step, sequence, True) for sequence, token in enumerate(chosen)])
        return {"tokens": sequences * (tokens - 1), "seconds": time.perf_counter() - start}

    def _prefill(self, tokens: int) -> dict[str, float]:
        rows = [((i * STRIDE + 1) % len(self), i, 0, i == tokens - 1) for i in range(tokens)]
        start = time.perf_counter()
        self._pass(rows)
        return {"tokens": tokens, "seconds": time.perf_counter() - start}


def main() -> None:
    """Answers until standard input ends."""
    path, threads, mode = sys.argv[1:]
    model = Timed(Path(path), int(threads), mode == "mapped")
    print(json.dumps({"system": "xllamacpp"}), flush=True)
    for line in sys.stdin:
        name, *counts = line.split()
        sequences, tokens = (1, int(counts[0])) if name == "prefill" else (int(counts[0]), int(counts[1]))
        print(json.dumps(model.run(name, sequences, tokens)), flush=True)


if __name__ == "__main__":
    main()
