// How are weights of 16 and 32 bits multiplied? 16 strands for each result (ARITHMETIC.md, section 4).
#pragma once

constexpr int FLOAT_STRANDS = 16, FLOAT_ROWS = 4;
// Turns over the strands that are on their way at once: few results are too few threads to hide how far memory is.
constexpr int FLOATS_AHEAD = 8;

// EACH elements in a row, of F32, F16 or BF16.
template <int TYPE, int EACH> WORD void elements(const uint8_t* data, int64_t at, float (&found)[EACH]) {
    if constexpr (EACH == 1) {
        found[0] = element(data, TYPE, at);
    } else if constexpr (TYPE == 0) {
        const Four four = *reinterpret_cast<const Four*>(data + at * 4);
        UNROLL
        for (int j = 0; j < EACH; j++) found[j] = from_bits(part_of(four, j));
    } else {
        const Two two = *reinterpret_cast<const Two*>(data + at * 2);
        UNROLL
        for (int j = 0; j < EACH; j++) {
            const uint32_t raw = part_of(two, j / 2) >> j % 2 * 16 & 0xffffu;
            found[j] = TYPE == 1 ? from_half(raw) : from_bits(raw << 16);
        }
    }
}

// A row of weights at `data` times FLOAT_ROWS rows of x; a thread has EACH of the strands.
template <int TYPE, int EACH> struct FloatProducts {
    const GpuProducts& call;
    const uint8_t* data;
    int64_t first;
    int own;  // the first of the thread's strands
    float total[FLOAT_ROWS][EACH];

    WORD const uint8_t* x(int r) const {
        return reinterpret_cast<const uint8_t*>(call.floats) + (first + r) * call.columns * 4;
    }
    // The terms of each strand, in order.
    WORD void sum() {
        for (int64_t begin = own; begin < call.columns; begin += FLOATS_AHEAD * FLOAT_STRANDS) {
            float weight[FLOATS_AHEAD][EACH], of[FLOATS_AHEAD][FLOAT_ROWS][EACH];
            UNROLL
            for (int k = 0; k < FLOATS_AHEAD; k++) {
                const int64_t at = begin + k * FLOAT_STRANDS;
                if (at >= call.columns) break;
                elements<TYPE, EACH>(data, at, weight[k]);
                UNROLL
                for (int r = 0; r < FLOAT_ROWS; r++) {
                    if (first + r < call.rows) elements<0, EACH>(x(r), at, of[k][r]);
                }
            }
            UNROLL
            for (int k = 0; k < FLOATS_AHEAD; k++) {
                if (begin + k * FLOAT_STRANDS >= call.columns) break;
                UNROLL
                for (int r = 0; r < FLOAT_ROWS; r++) {
                    UNROLL
                    for (int j = 0; j < EACH; j++) total[r][j] = fma(weight[k][j], of[k][r][j], total[r][j]);
                }
            }
        }
    }
    // The strands' sum: those of other threads first, which are further apart.
    WORD float folded(int r) const {
        float sum[EACH];
        UNROLL
        for (int j = 0; j < EACH; j++) {
            sum[j] = total[r][j];
            UNROLL
            for (int half = FLOAT_STRANDS / EACH / 2; half > 0; half /= 2) sum[j] = add(sum[j], across(sum[j], half));
        }
        UNROLL
        for (int half = EACH / 2; half > 0; half /= 2) {
            UNROLL
            for (int j = 0; j < half; j++) sum[j] = add(sum[j], sum[j + half]);
        }
        return sum[0];
    }
};

template <int TYPE, int EACH> WORD void float_products(const GpuProducts& call, const GpuMatrix& matrix, int64_t tile) {
    constexpr int BESIDE = FLOAT_STRANDS / EACH;  // threads of a row of weights
    const int64_t of = tile * TILE + thread() / BESIDE, size = TYPE == 0 ? 4 : 2;
    const uint8_t* data = reinterpret_cast<const uint8_t*>(matrix.data);
    FloatProducts<TYPE, EACH> products{call, data + (of < matrix.rows ? of : 0) * call.columns * size,
                                       static_cast<int64_t>(block_y()) * FLOAT_ROWS, thread() % BESIDE * EACH, {}};
    products.sum();
    UNROLL
    for (int r = 0; r < FLOAT_ROWS; r++) {
        const float sum = products.folded(r);
        if (products.own == 0) write(call, matrix, products.first + r, of, sum, call.rows);
    }
}

// Weights of `matrix`, as GGUF lays them out, times x [rows, columns]. Blocks: (rows of weights / 16, rows / 4), of 64
// threads where columns are a multiple of 16; else of 256.
template <int EACH> WORD void floats(const GpuProducts& call) {
    int64_t tile = block_x();
    const GpuMatrix& matrix = matrix_of(call, tile);
    if (matrix.type == 0) float_products<0, EACH>(call, matrix, tile);
    else if (matrix.type == 1) float_products<1, EACH>(call, matrix, tile);
    else float_products<30, EACH>(call, matrix, tile);
}
