"""What passes between Python and the kernels of a card? The one source of its layout, as cpu_structs.py is the CPU's.

NVRTC gets the text of `header`. Fields are 64 bits wide, so that no compiler pads; addresses are c_int64.
"""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, sizeof

from nvstreamd.kernels.c_layout import layout

MOST_MATRICES = 3


class GpuActivations(Structure):
    """Rows quantised in blocks of 32, in `eights` tiles of 8 rows; quads are four blocks.

    `q` [quads, eights, 4, 32] pairs of words as mma.m16n8k32 wants its second operand; `d`, `sums` (d times the sum of
    a block) and `halves` [quads, eights, 4, 8] float32, the second halves `half_bytes` behind.
    """

    _fields_ = (("q", c_int64), ("d", c_int64), ("sums", c_int64), ("halves", c_int64), ("half_bytes", c_int64),
                ("eights", c_int64))


class GpuMatrix(Structure):
    """Weights of `rows` rows in `tiles` of 16: packed, or as GGUF has them where `type` is a floating-point type.

    `bias` of `bias_type` is 0 where there is none; products go to `y`, rows `stride` floats apart.
    """

    _fields_ = (("data", c_int64), ("bias", c_int64), ("bias_type", c_int64), ("y", c_int64), ("rows", c_int64),
                ("stride", c_int64), ("tiles", c_int64), ("type", c_int64))


class GpuProducts(Structure):
    """Up to three matrices of one type, times `rows` rows of activations of `columns`: quantised, or `floats`.

    `blocks` of 32 in `quads` of four. Products are added to y where `adds`. Row i of them goes to row places[i] of y,
    where there are `places`. Where there are `choices` [pairs] int32, a row of experts', pair i is multiplied alone, by
    the expert choices[i], whose weights begin at table[choices[i]]: matrices' data then count from there. Its row of
    activations is i / of_each, row i of y is its. Where there are `groups`, block row i multiplies the rows of
    groups[i] by its weights. `one` is 1, which the compiler must not know. Where there is `unsound`, that int32 becomes
    `number` at most if what is written is NaN or infinite.
    """

    _fields_ = (("x", GpuActivations), ("floats", c_int64), ("rows", c_int64), ("columns", c_int64),
                ("blocks", c_int64), ("quads", c_int64), ("adds", c_int64), ("places", c_int64), ("one", c_int64),
                ("unsound", c_int64), ("number", c_int64), ("choices", c_int64), ("table", c_int64),
                ("of_each", c_int64), ("groups", c_int64),
                ("matrix", GpuMatrix * MOST_MATRICES))


class GpuGroup(Structure):
    """Rows `first` to `first + count` of activations, the first a multiple of 8 where a group may have more than one.

    They are multiplied by the weights of one expert: matrices' data count from `base`.
    """

    _fields_ = (("base", c_int64), ("first", c_int64), ("count", c_int64))


GROUP_BYTES = sizeof(GpuGroup)


class GpuGrouping(Structure):
    """Pairs of a row and one of its experts, `choices` [pairs] int32, to be dealt to `groups` of `size` at most.

    Pair places[i] is row i of what groups multiply, -1 for none; there are `slots` such rows and `most` groups, those
    at the end empty. Weights of expert e of `experts` begin at table[e].
    """

    _fields_ = (("choices", c_int64), ("pairs", c_int64), ("experts", c_int64), ("table", c_int64), ("size", c_int64),
                ("places", c_int64), ("slots", c_int64), ("groups", c_int64), ("most", c_int64))


class GpuRepack(Structure):
    """`rows` rows of `columns` weights as GGUF has them at `from_`, to be packed in `quads` at `to`."""

    _fields_ = (("from_", c_int64), ("to", c_int64), ("rows", c_int64), ("columns", c_int64), ("quads", c_int64))


class GpuRows(Structure):
    """Rows of `columns` floats at `x`, and what becomes of them at `out`; the kernels of rows.h say what each reads."""

    _fields_ = (("x", c_int64), ("other", c_int64), ("out", c_int64), ("norm", c_int64), ("norm_type", c_int64),
                ("picked", c_int64), ("of_each", c_int64), ("columns", c_int64), ("epsilon", c_double),
                ("staged", c_int64), ("gelu", c_int64), ("number", c_int64), ("used", c_int64),
                ("quantised", GpuActivations))


class GpuStretch(Structure):
    """Rows `first` to `first + count`: tokens `begin` on of a sequence whose pages are the group's from `page` on."""

    _fields_ = (("first", c_int64), ("count", c_int64), ("begin", c_int64), ("page", c_int64))


class GpuQueries(Structure):
    """The queries of a block of threads: those of `stretch` from `first` on, rows times heads of a key-value head."""

    _fields_ = (("stretch", c_int64), ("first", c_int64))


class GpuAttend(Structure):
    """Attention of one layer over pages of `page_bytes` from `memory` on; the layer begins `layer_at` halves into one.

    q [rows, heads, dim], k and v [rows, kv_heads, dim], out as q; `cos` and `sin` [rows, dim / 2]. Stretches, pages and
    `tiles` of queries are the pass's. `parts` has room for what chunks found, `most_chunks` a tile and head. What comes
    out is `quantised`, too, where there is room for it.
    """

    _fields_ = (("q", c_int64), ("k", c_int64), ("v", c_int64), ("out", c_int64), ("memory", c_int64),
                ("page_bytes", c_int64), ("layer_at", c_int64), ("stretches", c_int64), ("pages", c_int64),
                ("tiles", c_int64), ("cos", c_int64), ("sin", c_int64), ("q_norm", c_int64), ("q_norm_type", c_int64),
                ("k_norm", c_int64), ("k_norm_type", c_int64), ("heads", c_int64), ("kv_heads", c_int64),
                ("dim", c_int64), ("window", c_int64), ("interleaved", c_int64), ("epsilon", c_double),
                ("scale", c_double), ("parts", c_int64), ("most_chunks", c_int64), ("quantised", GpuActivations))


STRUCTS: tuple[type[Structure], ...] = (GpuActivations, GpuMatrix, GpuProducts, GpuGroup, GpuGrouping, GpuRepack,
                                        GpuRows, GpuStretch, GpuQueries, GpuAttend)


def header() -> str:
    """The text of structs.h."""
    return "\n".join([f"constexpr int MOST_MATRICES = {MOST_MATRICES};", "", *layout((), STRUCTS)])
