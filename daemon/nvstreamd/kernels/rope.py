"""By which angles is a head turned? The frequencies of a model, to the bit on every machine.

Powers come from decimal arithmetic, which has one result; a C library's pow() has one a version. Angles of positions
are kernels/ARITHMETIC.md's, section 6.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nvstreamd.kernels.arrays import Doubles, Floats
from nvstreamd.program import Rope, Yarn

# Far more digits than binary64's 17, so that rounding once more hits the nearest but in freaks.
DIGITS = Context(prec=50)
TWO_PI = Decimal("6.2831853071795864769252867665590057683943387987502")
QUARTERS_A_RADIAN = float.fromhex("0x1.45f306dc9c883p-1")
# pi / 2 in pieces of 28, 29 and 53 bits: a whole number below 2^24 times one of the first two is exact.
PIECES = tuple(map(float.fromhex, ("0x1.921fb54p+0", "0x1.10b4611p-30", "0x1.4c4c6628b80dcp-59")))
ORDERS = range(8, 0, -1)


@lru_cache(maxsize=8)
def powers(base: float, dim: int) -> tuple[float, ...]:
    """base^(-2i / dim) for each of dim / 2 pairs, the nearest binary64 numbers."""
    given = Decimal(base)
    return tuple(float(DIGITS.power(given, DIGITS.divide(Decimal(-2 * i), Decimal(dim)))) for i in range(dim // 2))


def frequencies(rope: Rope, factors: Floats | None) -> Doubles:
    """The angle of each pair a position, [dim / 2] float64; `factors` [dim / 2] are those that `rope` names."""
    plain: Doubles = np.array(powers(rope.base, rope.dim))
    found: Doubles = rope.scale * plain
    if rope.yarn is not None:
        kept = unscaled(rope.base, rope.dim, rope.yarn)
        found = found * (1 - kept) + plain * kept
    return found if factors is None else found / factors.astype(np.float64)


def unscaled(base: float, dim: int, yarn: Yarn) -> Doubles:
    """How much of each pair's frequency YaRN leaves as it is, [dim / 2] float64 from 0 to 1."""
    low, high = (_pair_that_turns(turns, base, dim, yarn.context) for turns in (yarn.fast, yarn.slow))
    begin, end = max(0, math.floor(low)), min(dim - 1, math.ceil(high))
    ramp = (np.arange(dim // 2, dtype=np.float64) - begin) / max(0.001, float(end - begin))
    return np.asarray(1 - np.clip(ramp, 0.0, 1.0), np.float64)


def _pair_that_turns(turns: float, base: float, dim: int, context: int) -> Decimal:
    """The number of the pair that turns so many times in `context` tokens; none is whole."""
    wavelengths = DIGITS.divide(Decimal(context), DIGITS.multiply(Decimal(turns), TWO_PI))
    return DIGITS.divide(DIGITS.multiply(Decimal(dim), DIGITS.ln(wavelengths)),
                         DIGITS.multiply(Decimal(2), DIGITS.ln(Decimal(base))))


def magnitude(rope: Rope) -> float:
    """What cosines and sines are multiplied by."""
    return 1.0 if rope.yarn is None else rope.yarn.magnitude


def cos_and_sin(turns: Doubles, positions: npt.NDArray[np.int64], times: float = 1.0) -> tuple[Floats, Floats]:
    """cos and sin [rows, dim / 2] float32 of positions [rows] int64 times `turns` [dim / 2], frequencies.

    Both are multiplied by `times` before they are rounded.
    """
    angle = positions[:, None].astype(np.float64) * turns
    quarter = np.rint(angle * QUARTERS_A_RADIAN)
    r = angle
    for piece in PIECES:
        r = r - quarter * piece
    z = r * r
    sin = np.full_like(z, 1 / math.factorial(17))
    cos = np.full_like(z, 1 / math.factorial(16))
    for order in ORDERS:
        sin = 1 / math.factorial(2 * order - 1) - z * sin
        cos = 1 / math.factorial(2 * order - 2) - z * cos
    sin = r * sin
    at = quarter - 4 * np.floor(quarter / 4)
    odd = (at == 1) | (at == 3)
    over, up = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return ((np.where((at == 1) | (at == 2), -over, over) * times).astype(np.float32),
            (np.where(at >= 2, -up, up) * times).astype(np.float32))
