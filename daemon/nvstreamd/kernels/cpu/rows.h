// What happens to rows of activations between products? RMSNorm, quantisation to blocks of 32, gates.
#pragma once

#include <initializer_list>

namespace {

// e^x to 1 or 2 units in the last place; NaN stays NaN. |x| beyond 87 is taken as 87.
inline F exponential(F x) {
    x = at_most(splat(87.0f), at_least(splat(-87.0f), x));
    // Adding 1.5 * 2^23 rounds to a whole number, found in the lower bits of the sum.
    const F shifted = fma(x, splat(1.44269504088896341f), splat(12582912.0f));
    const F whole = sub(shifted, splat(12582912.0f));
    // ln 2 in two parts, the first with trailing zeros (Cody and Waite).
    F r = fma(whole, splat(-0.693359375f), x);
    r = fma(whole, splat(2.12194440e-4f), r);
    F y = splat(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = fma(y, r, splat(c));
    return mul(y, from_bits(left<23>(add32(bits(shifted), splat32(127 - 0x4b400000)))));
}

void norm(const float* x, const float* weight, int64_t columns, float epsilon, float* y) {
    F squares[STRAND_VECTORS];
    for (F& lanes : squares) lanes = zero();
    const auto add_squares = [&](const float* from) {
        for (int v = 0; v < STRAND_VECTORS; v++) {
            const F lanes = load(from + v * W);
            squares[v] = fma(lanes, lanes, squares[v]);
        }
    };
    const int64_t whole = columns / STRANDS * STRANDS;
    for (int64_t i = 0; i < whole; i += STRANDS) add_squares(x + i);
    if (whole < columns) {
        float rest[STRANDS] = {};
        std::memcpy(rest, x + whole, (columns - whole) * sizeof *rest);
        add_squares(rest);
    }
    const float scale = 1.0f / __builtin_sqrtf(fold(squares) / static_cast<float>(columns) + epsilon);
    for (int64_t i = 0; i < columns; i++) y[i] = x[i] * scale * weight[i];
}

// g / (1 + e^-t): t is g, or for GELU 2 sqrt(2 / pi) (g + 0.044715 g^3).
template <CpuActivation A> inline F activated(F g) {
    const F t = A == SILU ? g : mul(g, add(mul(mul(g, g), splat(0.07135481627260025f)), splat(1.5957691216057308f)));
    return div(g, add(splat(1.0f), exponential(sub(zero(), t))));
}

template <CpuActivation A> void gate(float* gate, const float* up, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(gate + i, mul(activated<A>(load(gate + i)), load(up + i)));
    if (i < count) {
        float g[W] = {}, u[W] = {};
        std::memcpy(g, gate + i, (count - i) * sizeof *g);
        std::memcpy(u, up + i, (count - i) * sizeof *u);
        store(g, mul(activated<A>(load(g)), load(u)));
        std::memcpy(gate + i, g, (count - i) * sizeof *g);
    }
}

// A float with its last two bits cut off: 22 are left, so that a GPU's product with an integer rounds once
// (ARITHMETIC.md, section 3).
inline float cut(float x) {
    uint32_t raw;
    std::memcpy(&raw, &x, sizeof raw);
    raw &= ~3u;
    std::memcpy(&x, &raw, sizeof x);
    return x;
}

// 32 activations: d = largest magnitude / 127, cut; q = x * (127 / largest magnitude), rounded to even.
void quantise_block(const float* x, Block& out) {
    int32_t raw[BLOCK];
    std::memcpy(raw, x, sizeof raw);
    // As integers, magnitudes keep their order, and NaN stands above all: it must reach d.
    int32_t largest = 0;
    for (int32_t r : raw) {
        const int32_t magnitude = r & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    float most;
    std::memcpy(&most, &largest, sizeof most);
    const bool nothing = most < 1e-30f;
    const float inverse = nothing ? 0.0f : 127.0f / most;
    float shifted[BLOCK];
    for (int i = 0; i < BLOCK; i++) shifted[i] = x[i] * inverse + 12582912.0f;
    std::memcpy(raw, shifted, sizeof raw);
    int32_t halves[2] = {0, 0};
    for (int h = 0; h < 2; h++) {
        for (int i = 16 * h; i < 16 * h + 16; i++) {
            const int8_t q = static_cast<int8_t>(raw[i] - 0x4b400000);
            out.q[i] = q;
            halves[h] += q;
        }
    }
    out.d = nothing ? 0.0f : cut(most / 127.0f);
    out.whole[0] = halves[0];
    out.whole[1] = halves[1];
    out.whole[2] = halves[0] + halves[1];
    for (int i = 0; i < 3; i++) out.scaled[i] = out.d * static_cast<float>(out.whole[i]);
    out.unused = 0;
}

void quantise(const float* x, int64_t row, int64_t rows, int64_t columns, Block* blocks) {
    for (int64_t b = 0; b < columns / BLOCK; b++) {
        quantise_block(x + b * BLOCK, blocks[block_index(row, b, rows, columns / BLOCK)]);
    }
}

// Touches every byte once: what memory gives at most.
float read(const uint8_t* data, int64_t bytes) {
    F totals[4] = {zero(), zero(), zero(), zero()};
    const auto* x = reinterpret_cast<const float*>(data);
    const int64_t count = bytes / static_cast<int64_t>(sizeof *x);
    for (int64_t i = 0; i + 4 * W <= count; i += 4 * W) {
        for (int v = 0; v < 4; v++) totals[v] = from_bits(either(bits(totals[v]), bits(load(x + i + v * W))));
    }
    return sum(add(add(totals[0], totals[1]), add(totals[2], totals[3])));
}

}  // namespace
