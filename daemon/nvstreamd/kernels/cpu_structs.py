"""What passes between Python and the C++ kernels? The one source of its layout.

scripts/build_kernels.py writes cpu/structs.h from the classes here. Fields are 64 bits wide, so that no compiler pads.
"""

from __future__ import annotations

from ctypes import Array, Structure, addressof, c_double, c_int64, c_uint64
from enum import IntEnum
from typing import Any
from zlib import crc32

from nvstreamd.kernels.c_layout import layout

# Of the functions; the structs' own version is made of what they are.
VERSION = 5
MOST_MATRICES = 3


class Op(IntEnum):
    """The operation of a CpuStep; fields that an operation does not name are not read."""

    PROJECT = 0
    GATED = 1
    ADD = 2
    ATTEND = 3
    SCORE = 4
    ADD_NORMED = 5
    ROUTE = 6
    EXPERT = 7
    MIX = 8


class CpuActivation(IntEnum):
    """What becomes of a gate."""

    SILU = 0
    GELU = 1


class Base(IntEnum):
    """The place that an offset counts from: nothing is there, the stage's own weights, the model's constants."""

    NONE = 0
    WEIGHTS = 1
    CONSTANTS = 2


class CpuTensor(Structure):
    """A tensor, or none: `type` is a ggml_type, `offset` counts bytes from what `base` says."""

    _fields_ = (("base", c_int64), ("offset", c_int64), ("type", c_int64))


class CpuMatrix(Structure):
    """Weights [rows, columns of the step] and a bias [rows]; products go to value `out`."""

    _fields_ = (("data", CpuTensor), ("bias", CpuTensor), ("rows", c_int64), ("out", c_int64))


class CpuStep(Structure):
    """A program.Step. `x`, `q`, `k`, `v`, `out` are values by number, `columns` those of x.

    GATED takes matrices 0 and 1, the gate first, and `activation`. ADD multiplies `x` and adds to the out of matrix 0;
    ADD_NORMED adds the norm of `x` to `out`. SCORE writes from column `first` of the scores on. ATTEND has `heads` to
    `scale`, and the norms of heads; `layer` counts in `group`, a `window` of 0 is none. ROUTE scores by matrix 0, its
    normed x goes to `out`; `used` experts serve a row, by `weights`. EXPERT takes gate, up and down and writes to `out`
    what MIX adds to `x`, [rows, used, columns].
    """

    _fields_ = (
        ("op", c_int64), ("x", c_int64), ("columns", c_int64), ("norm", CpuTensor), ("epsilon", c_double),
        ("matrices", c_int64), ("matrix", CpuMatrix * MOST_MATRICES), ("first", c_int64),
        ("q", c_int64), ("k", c_int64), ("v", c_int64), ("out", c_int64),
        ("q_norm", CpuTensor), ("k_norm", CpuTensor), ("heads", c_int64), ("kv_heads", c_int64), ("dim", c_int64),
        ("interleaved", c_int64), ("group", c_int64), ("layer", c_int64), ("rope", c_int64),
        ("activation", c_int64), ("window", c_int64), ("scale", c_double),
        ("used", c_int64), ("weights", c_int64),
    )


class CpuStretch(Structure):
    """Rows `first` to `first + count`: tokens `begin` on of a sequence whose pages are the group's from `page` on."""

    _fields_ = (("first", c_int64), ("count", c_int64), ("begin", c_int64), ("page", c_int64))


class CpuGroup(Structure):
    """Layers whose keys and values share pages: page 0 at address `memory`, each of `page_bytes`.

    A page holds, layer by layer, keys [kv heads, dim, 32] and values [kv heads, 32, dim] of binary16. `stretches` and
    `pages` are addresses: the pass's stretches, and the numbers of the pages that they have here.
    """

    _fields_ = (("memory", c_uint64), ("page_bytes", c_int64), ("stretches", c_uint64), ("pages", c_uint64))


class CpuPass(Structure):
    """The facts that all stages of a pass share; addresses are c_uint64.

    `values` is a table of addresses by value, `angles` one of two a rope: cos, sin [rows, dim / 2] float32; `groups`
    are CpuGroups. `routing` [rows, used] int32 are the experts that the last ROUTE chose. `wanted` are the rows that
    SCORE is for. `unsound` is the first stage that left something that is not finite, -1 while there is none.
    """

    _fields_ = (
        ("rows", c_int64), ("values", c_uint64), ("angles", c_uint64),
        ("groups", c_uint64), ("stretch_count", c_int64),
        ("wanted", c_uint64), ("wanted_count", c_int64), ("scores", c_uint64), ("vocabulary", c_int64),
        ("width", c_int64), ("constants", c_uint64), ("unsound", c_int64), ("routing", c_uint64),
    )


class CpuVisit(Structure):
    """Rows that one expert serves: an EXPERT at address `step`, with its weights.

    `places` are `count` int64, each a row times `used` plus the expert's rank there.
    """

    _fields_ = (("step", c_uint64), ("weights", c_uint64), ("places", c_uint64), ("count", c_int64))


def address(structs: Array[Any]) -> int:
    """Where structs lie that Python holds; for as long as it does."""
    return addressof(structs)


STRUCTS: tuple[type[Structure], ...] = (CpuTensor, CpuMatrix, CpuStep, CpuStretch, CpuGroup, CpuPass, CpuVisit)

def _layout() -> str:
    """The enumerations and structs as C++ has them."""
    return "\n".join([f"constexpr int MOST_MATRICES = {MOST_MATRICES};", "",
                      *layout((Op, CpuActivation, Base), STRUCTS)])


# A library that was built for other structs would read fields where they are not.
ABI = crc32(f"{VERSION} {_layout()}".encode()) & 0x7FFFFFFF


def header() -> str:
    """The text of cpu/structs.h."""
    return "\n".join((
        "// What passes between Python and the kernels? Written by scripts/build_kernels.py from cpu_structs.py.",
        "#pragma once", "", "#include <cstdint>", "", f"constexpr int32_t NV_ABI = {ABI};", _layout()))
