"""What does llama.cpp itself answer? The oracle of the tests: its C API through ctypes.

The library is the extension module of the PyPI wheel `xllamacpp`, which exports llama.cpp's C symbols.
A test dependency only: the product never imports this.

Struct layout. `llama_model_params` and `llama_context_params` go by value and change between releases.
Both are larger than 16 bytes, so on x86-64 SysV they travel in memory: a caller may pass an over-large
opaque block and the callee reads only its own head of it. The offsets below were found by filling a block
with 0xAA and 0x55, calling the `*_default_params` functions and comparing (llama.cpp b11549); the default
bytes expected at those offsets are checked at every start, so another build fails loudly, never quietly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPAQUE = 512
_VOCAB_ONLY = 72
_N_CTX, _N_BATCH, _N_UBATCH, _N_OUTPUTS_PER_SEQ, _THREADS, _THREADS_BATCH = 0, 4, 8, 24, 28, 32
_MODEL_DEFAULTS = {16: struct.pack("<iiiii", -1, 1, -1, 1, 0), _VOCAB_ONLY: bytes((0, 0, 1, 0, 0, 0))}
_CONTEXT_DEFAULTS = {
    _N_CTX: struct.pack("<IIII", 512, 2048, 512, 1),
    _N_OUTPUTS_PER_SEQ: struct.pack("<Iii", 1, 4, 4),
    40: struct.pack("<iiii", -1, -1, -1, -1),
}


class LlamaCppError(RuntimeError):
    """llama.cpp refused, or is not the build that this module knows."""


class _Opaque(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_uint8 * _OPAQUE),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True)
class _Library:
    """The loaded library, and the log callback that must outlive it."""

    c: Any
    silent: Any


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_model_default_params": (_Opaque, ()),
    "llama_context_default_params": (_Opaque, ()),
    "llama_model_load_from_file": (ctypes.c_void_p, (ctypes.c_char_p, _Opaque)),
    "llama_model_free": (None, (ctypes.c_void_p,)),
    "llama_model_get_vocab": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_init_from_model": (ctypes.c_void_p, (ctypes.c_void_p, _Opaque)),
    "llama_free": (None, (ctypes.c_void_p,)),
    "llama_batch_init": (_Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (ctypes.c_int32, (ctypes.c_void_p, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p, ctypes.c_int32)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (ctypes.c_void_p, ctypes.c_int32)),
    "llama_vocab_get_attr": (ctypes.c_int32, (ctypes.c_void_p, ctypes.c_int32)),
    "llama_vocab_bos": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_vocab_eos": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_vocab_eot": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_vocab_get_add_bos": (ctypes.c_bool, (ctypes.c_void_p,)),
    "llama_vocab_get_add_eos": (ctypes.c_bool, (ctypes.c_void_p,)),
    "llama_tokenize": (
        ctypes.c_int32,
        (
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ),
    ),
    "llama_token_to_piece": (
        ctypes.c_int32,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
    ),
}


def _check_layout(name: str, params: _Opaque, expected: dict[int, bytes]) -> None:
    raw = bytes(params.raw)
    for offset, want in expected.items():
        if raw[offset : offset + len(want)] != want:
            raise LlamaCppError(
                f"{name}: byte {offset} is not what this build of llama.cpp had; "
                "find the new offsets as the module's docstring says"
            )


@lru_cache(maxsize=1)
def _library() -> _Library:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise LlamaCppError("install the test dependency xllamacpp")
    c = ctypes.CDLL(str(Path(spec.origin).with_name("xllamacpp.abi3.so")))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(c, name)
        function.restype, function.argtypes = result, list(arguments)
    silent = _LOG(lambda level, text, data: None)
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    _check_layout("llama_model_params", c.llama_model_default_params(), _MODEL_DEFAULTS)
    _check_layout("llama_context_params", c.llama_context_default_params(), _CONTEXT_DEFAULTS)
    return _Library(c, silent)


class LlamaCpp:
    """One model (or only its vocabulary) as llama.cpp loads it. Use as a context manager, or `close()` it.

    Args:
        path: a GGUF file.
        vocab_only: read the vocabulary and no weights.

    Raises:
        LlamaCppError: llama.cpp refuses the file.
    """

    def __init__(self, path: str | Path, vocab_only: bool = False) -> None:
        self._c = _library().c
        params = self._c.llama_model_default_params()
        params.raw[_VOCAB_ONLY] = int(vocab_only)
        self._model = self._c.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LlamaCppError(f"llama.cpp does not load {path}")
        self._vocab = self._c.llama_model_get_vocab(self._model)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._model:
            self._c.llama_model_free(self._model)
            self._model = None

    def __len__(self) -> int:
        return int(self._c.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of `text`, by llama_tokenize."""
        raw = text.encode()
        room = len(raw) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self._c.llama_tokenize(self._vocab, raw, len(raw), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of one token, by llama_token_to_piece."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._c.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def is_eog(self, token: int) -> bool:
        """Whether llama.cpp ends a generation at this token."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def attributes(self, token: int) -> int:
        """The bits of enum llama_token_attr."""
        return int(self._c.llama_vocab_get_attr(self._vocab, token))

    def facts(self) -> dict[str, int | bool]:
        """bos, eos, eot (-1: none), add_bos, add_eos."""
        names = ("bos", "eos", "eot")
        ids: dict[str, int | bool] = {
            n: int(getattr(self._c, f"llama_vocab_{n}")(self._vocab)) for n in names
        }
        for name in ("add_bos", "add_eos"):
            ids[name] = bool(getattr(self._c, f"llama_vocab_get_{name}")(self._vocab))
        return ids

    def logits(
        self, token_ids: Sequence[int], n_ctx: int = 512, threads: int = 2, chunk: int = 256
    ) -> NDArray[np.float32]:
        """The logits after every position of one sequence: array [len(token_ids), vocabulary].

        Args:
            token_ids: the sequence; at most `n_ctx` long.
            n_ctx: context length of the run.
            threads: CPU threads.
            chunk: tokens to a llama_decode call.

        Raises:
            LlamaCppError: the sequence does not fit, or llama.cpp refuses it.
        """
        if len(token_ids) > n_ctx:
            raise LlamaCppError(f"{len(token_ids)} tokens do not fit a context of {n_ctx}")
        context = self._c.llama_init_from_model(self._model, self._context_params(n_ctx, threads, chunk))
        if not context:
            raise LlamaCppError("llama.cpp makes no context for this model")
        try:
            parts = [
                self._decode(context, token_ids[i : i + chunk], i) for i in range(0, len(token_ids), chunk)
            ]
        finally:
            self._c.llama_free(context)
        return np.concatenate(parts) if parts else np.zeros((0, len(self)), dtype=np.float32)

    def _context_params(self, n_ctx: int, threads: int, chunk: int) -> _Opaque:
        params: _Opaque = self._c.llama_context_default_params()
        values = {
            _N_CTX: n_ctx,
            _N_BATCH: chunk,
            _N_UBATCH: chunk,
            _N_OUTPUTS_PER_SEQ: chunk,
            _THREADS: threads,
            _THREADS_BATCH: threads,
        }
        for offset, value in values.items():
            struct.pack_into("<I", params.raw, offset, value)
        return params

    def _decode(self, context: int, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, 1
            batch.n_tokens = len(tokens)
            status = self._c.llama_decode(context, batch)
            if status:
                raise LlamaCppError(f"llama_decode: status {status}")
            rows = [
                np.ctypeslib.as_array(self._c.llama_get_logits_ith(context, i), (len(self),)).copy()
                for i in range(len(tokens))
            ]
        finally:
            self._c.llama_batch_free(batch)
        return np.stack(rows)


def logits(model_path: str | Path, token_ids: Sequence[int], n_ctx: int, threads: int) -> NDArray[np.float32]:
    """The logits after every position, [n, vocabulary], of a model loaded for this one call."""
    with LlamaCpp(model_path) as model:
        return model.logits(token_ids, n_ctx, threads)
