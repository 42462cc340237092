// Which functions of numbers does the contract define? ARITHMETIC.md, sections 1 and 2, over a device's words.
#pragma once

CONSTANT float MAGIC = 12582912.0f;  // 1.5 * 2^23: a float's last bits are an integer's
CONSTANT int32_t MAGIC_BITS = 0x4b400000;
CONSTANT int STRANDS = 32;
#define INFINITE from_bits(0x7f800000u)

WORD float limited(float x, float least, float most) { return x < least ? least : x > most ? most : x; }

// Section 1. A NaN stays one: it is neither below the least nor above the most.
WORD float exponential(float given) {
    const float x = limited(given, -87.0f, 87.0f);
    const float shifted = fma(x, 0x1.715476p+0f, MAGIC);
    const float whole = sub(shifted, MAGIC);
    const float r = fma(whole, 2.12194440e-4f, fma(whole, -0.693359375f, x));
    float y = 1.0f / 5040;
    y = fma(y, r, 1.0f / 720);
    y = fma(y, r, 1.0f / 120);
    y = fma(y, r, 1.0f / 24);
    y = fma(y, r, 1.0f / 6);
    y = fma(y, r, 0.5f);
    y = fma(y, r, 1.0f);
    y = fma(y, r, 1.0f);
    return mul(y, from_bits((bits(shifted) << 23) + 0x3f800000u));
}

// Section 2: a strand in each lane of a warp, folded; every lane has the sum. (Both orders of a sum are one.)
WORD float fold(float strand) {
    UNROLL
    for (int half = STRANDS / 2; half > 0; half /= 2) strand = add(strand, across(strand, half));
    return strand;
}

WORD float cut(float x) { return from_bits(bits(x) & ~3u); }

// A vector's element, of F32, F16 or BF16, which are types 0, 1 and 30.
WORD float element(const uint8_t* data, int64_t type, int64_t i) {
    if (type == 0) return reinterpret_cast<const float*>(data)[i];
    const uint32_t raw = reinterpret_cast<const uint16_t*>(data)[i];
    return type == 1 ? from_half(raw) : from_bits(raw << 16);
}
