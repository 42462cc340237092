"""What does kernels/ARITHMETIC.md say, as slow, plain Python? Written from that page, not from the kernels."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np

F = np.float32
MASK = (1 << 64) - 1


def numbers(seed: int, count: int) -> list[F]:
    """Section 8: binary32 numbers from -1 to 1, out of splitmix64."""
    found, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        found.append(F(((z ^ z >> 31) >> 40) * 2.0**-23 - 1.0))
    return found


def fma(a: F, b: F, c: F) -> F:
    """a * b + c of finite numbers, rounded once: to odd in binary64 first."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = float(exact)
    if Fraction(near) != exact and not struct.unpack("<q", struct.pack("<d", near))[0] & 1:
        near = math.nextafter(near, math.inf if exact > Fraction(near) else -math.inf)
    return F(near)


def exponential(x: F) -> F:
    """Section 1."""
    x = min(max(x, F(-87)), F(87))
    whole = fma(x, F(1.44269504088896341), F(12582912)) - F(12582912)
    r = fma(whole, F(-0.693359375), x)
    r = fma(whole, F(2.12194440e-4), r)
    y = F(1 / 5040)
    for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1, 1):
        y = fma(y, r, F(c))
    return y * F(2.0 ** int(whole))


def fold(strands: Sequence[F]) -> F:
    """Section 2: the upper half is added to the lower until one is left."""
    while len(strands) > 1:
        half = len(strands) // 2
        strands = [strands[i] + strands[i + half] for i in range(half)]
    return strands[0]


def rms_norm(x: Sequence[F], weight: Sequence[F], epsilon: F) -> list[F]:
    """Section 4."""
    strands = [F(0)] * 32
    for i, value in enumerate(x):
        strands[i % 32] = fma(value, value, strands[i % 32])
    scale = F(1) / np.sqrt(fold(strands) / F(len(x)) + epsilon)
    return [value * scale * w for value, w in zip(x, weight, strict=True)]


def float_product(weights: Sequence[F], x: Sequence[F]) -> F:
    """Section 4: a row of floating-point weights."""
    strands = [F(0)] * 16
    for i, (w, value) in enumerate(zip(weights, x, strict=True)):
        strands[i % 16] = fma(w, value, strands[i % 16])
    return fold(strands)


def quantise(x: Sequence[F]) -> tuple[F, list[int]]:
    """Section 3: d and q of a block of 32 activations, of which one is not tiny."""
    most = max(abs(value) for value in x)
    bits = struct.unpack("<I", struct.pack("<f", most / F(127)))[0] & ~3
    inverse = F(127) / most
    return F(struct.unpack("<f", struct.pack("<I", bits))[0]), [int(np.rint(value * inverse)) for value in x]


# (scale, weights, low) of each piece of 16 or 32 that has a scale.
Pieces = Iterator[tuple[F, list[int], F | None]]


def _half(raw: bytes) -> F:
    return F(np.frombuffer(raw, np.float16)[0])


def q4_0(raw: bytes) -> Pieces:
    """A row of Q4_0: blocks of 18 bytes."""
    for at in range(0, len(raw), 18):
        q = raw[at + 2 : at + 18]
        yield _half(raw[at : at + 2]), [(b & 15) - 8 for b in q] + [(b >> 4) - 8 for b in q], None


def q8_0(raw: bytes) -> Pieces:
    """A row of Q8_0: blocks of 34 bytes."""
    for at in range(0, len(raw), 34):
        yield _half(raw[at : at + 2]), list(struct.unpack("<32b", raw[at + 2 : at + 34])), None


def q4_k(raw: bytes) -> Pieces:
    """A row of Q4_K: blocks of 144 bytes, eight sub-blocks with a scale and a minimum of six bits each."""
    for at in range(0, len(raw), 144):
        d, least, s = _half(raw[at : at + 2]), _half(raw[at + 2 : at + 4]), raw[at + 4 : at + 16]
        for j in range(8):
            scale = s[j] & 63 if j < 4 else s[j + 4] & 15 | s[j - 4] >> 6 << 4
            minimum = s[j + 4] & 63 if j < 4 else s[j + 4] >> 4 | s[j] >> 6 << 4
            q = raw[at + 16 + j // 2 * 32 : at + 48 + j // 2 * 32]
            yield d * F(scale), [b >> 4 * (j % 2) & 15 for b in q], -least * F(minimum)


def q6_k(raw: bytes) -> Pieces:
    """A row of Q6_K: blocks of 210 bytes, sixteen sub-blocks of 16 with a scale of eight bits each."""
    for at in range(0, len(raw), 210):
        low, high = raw[at : at + 128], raw[at + 128 : at + 192]
        scales, d = struct.unpack("<16b", raw[at + 192 : at + 208]), _half(raw[at + 208 : at + 210])
        for piece in range(16):
            w = []
            for i in range(16 * piece, 16 * piece + 16):
                part, quarter, column = i // 128, i % 128 // 32, i % 32
                four = low[64 * part + 32 * (quarter % 2) + column] >> 4 * (quarter // 2) & 15
                w.append((four | (high[32 * part + column] >> 2 * quarter & 3) << 4) - 32)
            yield d * F(scales[piece]), w, None


TYPES: dict[str, Callable[[bytes], Pieces]] = {"Q4_0": q4_0, "Q8_0": q8_0, "Q4_K": q4_k, "Q6_K": q6_k}


def quantised_product(kind: str, row: bytes, x: Sequence[F]) -> F:
    """Section 3: one row of weights times one row of activations."""
    blocks = [quantise(x[i : i + 32]) for i in range(0, len(x), 32)]
    total, at = F(0), 0
    for scale, weights, low in TYPES[kind](row):
        d, q = blocks[at // 32]
        own = q[at % 32 : at % 32 + len(weights)]
        total = fma(scale, d * F(sum(w * a for w, a in zip(weights, own, strict=True))), total)
        if low is not None:
            total = fma(low, d * F(sum(own)), total)
        at += len(weights)
    return total


def gate(g: F, u: F) -> F:
    """Section 4: SiLU."""
    return g / (F(1) + exponential(F(0) - g)) * u


def gelu_gate(g: F, u: F) -> F:
    """Section 4: GELU."""
    t = g * (g * g * F(0.07135481627260025) + F(1.5957691216057308))
    return g / (F(1) + exponential(F(0) - t)) * u


def route(scores: Sequence[F], used: int) -> tuple[list[int], list[F]]:
    """Section 9: the experts of a row by rank, and their weights."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:used]
    parts = [exponential(score - scores[order[0]]) for score in scores]
    strands = [F(0)] * 32
    for i, part in enumerate(parts):
        strands[i % 32] = strands[i % 32] + part
    weights = [parts[i] / fold(strands) for i in order]
    chosen = F(0)
    for weight in weights:
        chosen = chosen + weight
    return order, [weight / max(chosen, F(2.0**-14)) for weight in weights]


def mix(x: Sequence[F], weights: Sequence[F], parts: Sequence[Sequence[F]]) -> list[F]:
    """Section 9: what experts found of a row, by rank, added to it."""
    found = []
    for i, value in enumerate(x):
        mixed = F(0)
        for weight, part in zip(weights, parts, strict=True):
            mixed = fma(weight, part[i], mixed)
        found.append(value + mixed)
    return found


def angles(dim: int, base: float, position: int, scale: float = 1.0) -> tuple[list[F], list[F]]:
    """Section 6: cos and sin of each pair of a head. Python's floats are binary64, each operation rounded."""
    cos, sin = [], []
    context = Context(prec=60)
    for pair in range(dim // 2):
        exponent = context.divide(Decimal(-2 * pair), Decimal(dim))
        power = float(context.exp(context.multiply(context.ln(Decimal(base)), exponent)))
        angle = position * (scale * power)
        quarter = float(round(angle * float.fromhex("0x1.45f306dc9c883p-1")))
        r = angle
        for piece in ("0x1.921fb54p+0", "0x1.10b4611p-30", "0x1.4c4c6628b80dcp-59"):
            r = r - quarter * float.fromhex(piece)
        z = r * r
        s, c = 1 / math.factorial(17), 1 / math.factorial(16)
        for n in range(15, 0, -2):
            s, c = 1 / math.factorial(n) - z * s, 1 / math.factorial(n - 1) - z * c
        s = r * s
        found = ((c, s), (-s, c), (-c, -s), (s, -c))[int(quarter) % 4]
        cos.append(F(found[0]))
        sin.append(F(found[1]))
    return cos, sin


def turn(x: Sequence[F], cos: Sequence[F], sin: Sequence[F]) -> list[F]:
    """Section 5: the pairs (i, i + half) of a head."""
    half = len(x) // 2
    return ([x[i] * cos[i] - x[i + half] * sin[i] for i in range(half)]
            + [x[i] * sin[i] + x[i + half] * cos[i] for i in range(half)])


def _chunk(q: Sequence[F], keys: Sequence[Sequence[F]], values: Sequence[Sequence[F]], first: int
           ) -> tuple[F, F, list[F]]:
    most, total, mixed = F(-math.inf), F(0), [F(0)] * len(q)
    for page in range(0, len(keys), 32):
        if page + 32 <= first:
            continue
        scores = []
        for key in keys[page : page + 32]:
            score = F(0)
            for a, b in zip(q, key, strict=True):
                score = fma(a, b, score)
            scores.append(score)
        unseen = max(0, first - page)
        new = max(most, *scores[unseen:])
        weights = [F(0)] * unseen + [exponential(score - new) for score in scores[unseen:]]
        shrink = exponential(most - new)
        total = total * shrink + fold(weights + [F(0)] * (32 - len(weights)))
        if most != new:
            mixed = [value * shrink for value in mixed]
        most = new
        for w, value in list(zip(weights, values[page : page + 32], strict=False))[unseen:]:
            mixed = [fma(w, v, m) for v, m in zip(value, mixed, strict=True)]
    return most, total, mixed


def attend(q: Sequence[F], keys: Sequence[Sequence[F]], values: Sequence[Sequence[F]], first: int = 0) -> list[F]:
    """Section 5: one turned query head over binary16 keys and values, which it sees from token `first` on."""
    q = [value * (F(1) / np.sqrt(F(len(q)))) for value in q]
    start = first // 256 * 256
    most, total, mixed = _chunk(q, keys[start : start + 256], values[start : start + 256], first - start)
    for begin in range(start + 256, len(keys), 256):
        own, its_total, its_mixed = _chunk(q, keys[begin : begin + 256], values[begin : begin + 256], 0)
        new = max(most, own)
        kept, taken = exponential(most - new), exponential(own - new)
        total = fma(its_total, taken, total * kept)
        mixed = [fma(a, taken, b * kept) for a, b in zip(its_mixed, mixed, strict=True)]
        most = new
    return [value / total for value in mixed]
