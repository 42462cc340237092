// How are weights of 16 and 32 bits multiplied? 16 strands for each result (ARITHMETIC.md, section 4), two a warp.
#pragma once

constexpr int FLOAT_STRANDS = 16, FLOAT_WARPS = 8, FLOAT_ROWS = 4;

// Weights of `matrix`, as GGUF lays them out, times x [rows, columns]. Blocks: (rows of weights / 16, rows / 4).
WORD void floats(const GpuProducts& call) {
    const int warp = thread() / 32, strand = thread() % FLOAT_STRANDS;
    int64_t tile = block_x();
    const GpuMatrix& matrix = matrix_of(call, tile);
    const int64_t of = tile * TILE + warp * 2 + thread() % 32 / FLOAT_STRANDS, columns = call.columns;
    const int64_t first = static_cast<int64_t>(block_y()) * FLOAT_ROWS;
    const int64_t size = matrix.type == 0 ? 4 : 2;
    const uint8_t* data = reinterpret_cast<const uint8_t*>(matrix.data) + (of < matrix.rows ? of : 0) * columns * size;
    float total[FLOAT_ROWS] = {};
    for (int64_t i = strand; i < columns; i += FLOAT_STRANDS) {
        const float weight = element(data, matrix.type, i);
        UNROLL
        for (int r = 0; r < FLOAT_ROWS; r++) {
            if (first + r < call.rows) {
                const float* x = reinterpret_cast<const float*>(call.floats) + (first + r) * columns;
                total[r] = fma(weight, x[i], total[r]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < FLOAT_ROWS; r++) {
        float sum = total[r];
        UNROLL
        for (int half = FLOAT_STRANDS / 2; half > 0; half /= 2) sum = add(sum, across(sum, half));
        if (strand == 0 && first + r < call.rows) write(call, matrix, first + r, of, sum);
    }
}
