// What happens to rows between products? Norms, quantisation, gates: ARITHMETIC.md, sections 3, 4 and 9.
#pragma once

constexpr int ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32;

// Block b of a row, an element in each lane, quantised to where products of `x` read it.
WORD void quantise(const GpuActivations& x, int64_t row, int64_t b, float value, int lane) {
    uint32_t magnitude = bits(value) & 0x7fffffffu;  // as integers these keep their order, NaN above all
    UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = across(magnitude, mask);
        magnitude = other > magnitude ? other : magnitude;
    }
    const float most = from_bits(magnitude);
    const bool nothing = most < 1e-30f;
    const float inverse = nothing ? 0.0f : divide(127.0f, most), d = nothing ? 0.0f : cut(divide(most, 127.0f));
    const uint32_t shifted = bits(add(mul(value, inverse), MAGIC)) - static_cast<uint32_t>(MAGIC_BITS);
    const int32_t q = static_cast<int8_t>(shifted);
    int32_t half = q;
    UNROLL
    for (int mask = 8; mask > 0; mask /= 2) half += static_cast<int32_t>(across(static_cast<uint32_t>(half), mask));
    const int32_t other = static_cast<int32_t>(across(static_cast<uint32_t>(half), 16));
    uint32_t word = (static_cast<uint32_t>(q) & 255u) << 8 * (lane % 4);
    word |= across(word, 1);
    word |= across(word, 2);
    const int64_t eight = b / QUAD * x.eights + row / 8, at = eight * QUAD + b % QUAD, g = row % 8;
    if (lane % 4 == 0) {
        reinterpret_cast<uint32_t*>(x.q)[(at * 32 + g * 4 + lane / 4 % 4) * 2 + lane / 16] = word;
    }
    if (lane == 0) {
        const int64_t place = at * 8 + g;
        reinterpret_cast<float*>(x.d)[place] = d;
        reinterpret_cast<float*>(x.sums)[place] = mul(d, static_cast<float>(half + other));
        reinterpret_cast<float*>(x.halves)[place] = mul(d, static_cast<float>(half));
        reinterpret_cast<float*>(x.halves + x.half_bytes)[place] = mul(d, static_cast<float>(other));
    }
}

// The norm's factor for a row, in every thread: 1 / sqrt(sum of squares / columns + epsilon).
WORD float factor_of(const float* row, int64_t columns, float epsilon, float* one) {
    if (thread() < 32) {
        float strand = 0.0f;
        UNROLL_BY(16)
        for (int64_t i = thread(); i < columns; i += STRANDS) strand = fma(row[i], row[i], strand);
        const float sum = fold(strand);
        if (thread() == 0) *one = divide(1.0f, root(add(divide(sum, static_cast<float>(columns)), epsilon)));
    }
    sync_block();
    return *one;
}

// True where row `row` is nobody's, as rows between groups are.
WORD bool is_nobody(const GpuRows& call, int64_t row) {
    return call.picked && reinterpret_cast<const int64_t*>(call.picked)[row] < 0;
}

// Rows of x, normed where there is a norm, to `out` and quantised where those are wanted. Blocks: (any number, rows).
WORD void prepare(const GpuRows& call, uint8_t* memory) {
    SHARED(float, one, 1);
    const int64_t row = block_y(), columns = call.columns;
    if (is_nobody(call, row)) return;
    const int64_t picked = call.picked ? reinterpret_cast<const int64_t*>(call.picked)[row] / call.used : row;
    const float* x = reinterpret_cast<const float*>(call.x) + picked * columns;
    float factor = 1.0f;
    if (call.norm) {
        const float* from = x;
        if (call.staged) {
            float* own = reinterpret_cast<float*>(memory);
            for (int64_t i = thread(); i < columns; i += ROW_THREADS) own[i] = x[i];
            sync_block();
            from = own;
        }
        factor = factor_of(from, columns, static_cast<float>(call.epsilon), one);
        x = from;
    }
    const int lane = thread() % 32;
    const uint8_t* weight = reinterpret_cast<const uint8_t*>(call.norm);
    for (int64_t b = block_x() * ROW_WARPS + thread() / 32; b * 32 < columns; b += blocks_x() * ROW_WARPS) {
        const int64_t i = b * 32 + lane;
        float value = i < columns ? x[i] : 0.0f;
        if (weight && i < columns) value = mul(mul(value, factor), element(weight, call.norm_type, i));
        if (call.out && i < columns) reinterpret_cast<float*>(call.out)[row * columns + i] = value;
        if (call.quantised.q && (b + 1) * 32 <= columns) quantise(call.quantised, row, b, value, lane);
    }
}

template <bool GELU> WORD float activated(float g) {
    const float t = GELU ? mul(g, add(mul(mul(g, g), 0.07135481627260025f), 1.5957691216057308f)) : g;
    return divide(g, add(1.0f, exponential(sub(0.0f, t))));
}

// out = activation(x) * other, and quantised. Blocks: (any number, rows).
WORD void gate(const GpuRows& call) {
    const int64_t row = block_y(), columns = call.columns;
    if (is_nobody(call, row)) return;
    const float *g = reinterpret_cast<const float*>(call.x) + row * columns,
                *u = reinterpret_cast<const float*>(call.other) + row * columns;
    const int lane = thread() % 32;
    for (int64_t b = block_x() * ROW_WARPS + thread() / 32; b * 32 < columns; b += blocks_x() * ROW_WARPS) {
        const int64_t i = b * 32 + lane;
        float value = 0.0f;
        if (i < columns) {
            value = mul(call.gelu ? activated<true>(g[i]) : activated<false>(g[i]), u[i]);
            reinterpret_cast<float*>(call.out)[row * columns + i] = value;
        }
        if (call.quantised.q && (b + 1) * 32 <= columns) quantise(call.quantised, row, b, value, lane);
    }
}

// out += norm of x. Blocks: (1, rows).
WORD void add_normed(const GpuRows& call) {
    SHARED(float, one, 1);
    const int64_t row = block_y(), columns = call.columns;
    const float* x = reinterpret_cast<const float*>(call.x) + row * columns;
    float* out = reinterpret_cast<float*>(call.out) + row * columns;
    const float factor = factor_of(x, columns, static_cast<float>(call.epsilon), one);
    for (int64_t i = thread(); i < columns; i += ROW_THREADS) {
        const float weight = element(reinterpret_cast<const uint8_t*>(call.norm), call.norm_type, i);
        out[i] = add(out[i], mul(mul(x[i], factor), weight));
    }
}

// out += the sum of weights[rank] * x[rank], by rank. Blocks: (any number, rows).
WORD void mix(const GpuRows& call) {
    const int64_t row = block_y(), columns = call.columns, used = call.used;
    const float *weights = reinterpret_cast<const float*>(call.other) + row * used,
                *parts = reinterpret_cast<const float*>(call.x) + row * used * columns;
    float* out = reinterpret_cast<float*>(call.out) + row * columns;
    for (int64_t i = block_x() * ROW_THREADS + thread(); i < columns; i += blocks_x() * ROW_THREADS) {
        float total = 0.0f;
        for (int64_t rank = 0; rank < used; rank++) total = fma(weights[rank], parts[rank * columns + i], total);
        out[i] = add(out[i], total);
    }
}

// Words of 32 bits at x, which may lie in host memory, to out: `columns` of them. Blocks: any number.
WORD void take(const GpuRows& call) {
    for (int64_t i = block_x() * ROW_THREADS + thread(); i < call.columns; i += blocks_x() * ROW_THREADS) {
        reinterpret_cast<uint32_t*>(call.out)[i] = reinterpret_cast<const uint32_t*>(call.x)[i];
    }
}

// Row i of x becomes row picked[i] of out. Blocks: (any number, rows).
WORD void scatter(const GpuRows& call) {
    const int64_t row = block_y(), to = reinterpret_cast<const int64_t*>(call.picked)[row];
    for (int64_t i = block_x() * ROW_THREADS + thread(); i < call.columns; i += blocks_x() * ROW_THREADS) {
        reinterpret_cast<float*>(call.out)[to * call.columns + i] =
            reinterpret_cast<const float*>(call.x)[row * call.columns + i];
    }
}

// Notes the stage `number` where one of `columns` of rows, `of_each` apart, is NaN or infinite. Blocks: (any, rows).
WORD void look(const GpuRows& call) {
    const float* x = reinterpret_cast<const float*>(call.x) + static_cast<int64_t>(block_y()) * call.of_each;
    bool bad = false;
    for (int64_t i = block_x() * ROW_THREADS + thread(); i < call.columns; i += blocks_x() * ROW_THREADS) {
        bad |= (bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    }
    if (bad) lower_to(reinterpret_cast<int32_t*>(call.out), static_cast<int32_t>(call.number));
}

// cos and sin of positions (x) times frequencies (norm), [rows, pairs] each, to out and other: ARITHMETIC.md,
// section 6. Blocks: (1, rows).
WORD double one_over_factorial(int n) {
    double product = 1.0;
    for (int i = 2; i <= n; i++) product *= i;
    return 1.0 / product;
}
WORD void angles(const GpuRows& call) {
    const int64_t row = block_y(), pairs = call.columns;
    const double position = static_cast<double>(reinterpret_cast<const int64_t*>(call.x)[row]);
    for (int64_t pair = thread(); pair < pairs; pair += ROW_THREADS) {
        const double angle = position * reinterpret_cast<const double*>(call.norm)[pair];
        const double quarter = nearest(angle * 0x1.45f306dc9c883p-1);
        const double r = angle - quarter * 0x1.921fb54p+0 - quarter * 0x1.10b4611p-30 - quarter * 0x1.4c4c6628b80dcp-59;
        const double z = r * r;
        double sine = one_over_factorial(17), cosine = one_over_factorial(16);
        for (int order = 8; order > 0; order--) {
            sine = one_over_factorial(2 * order - 1) - z * sine;
            cosine = one_over_factorial(2 * order - 2) - z * cosine;
        }
        sine = r * sine;
        const double at = quarter - 4 * below(quarter / 4);
        const bool odd = at == 1 || at == 3;
        const double over = odd ? sine : cosine, up = odd ? cosine : sine;
        const double turned = at == 1 || at == 2 ? -over : over, raised = at >= 2 ? -up : up;
        reinterpret_cast<float*>(call.out)[row * pairs + pair] = static_cast<float>(turned * call.epsilon);
        reinterpret_cast<float*>(call.other)[row * pairs + pair] = static_cast<float>(raised * call.epsilon);
    }
}
