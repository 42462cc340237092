// How are weights of 16 and 32 bits multiplied? R rows of weights by C rows of activations, summed over 16 lanes.
//
// Each pair has lanes of its own, filled in one order, so that neither R nor C nor the split of work shows in a result.
#pragma once

namespace {

constexpr int LANES = 16;
constexpr int VECTORS = LANES / W;

struct WeightF32 {
    static constexpr int BYTES = 4;
    static F at(const uint8_t* p, int64_t i) { return load(reinterpret_cast<const float*>(p) + i); }
};
struct WeightF16 {
    static constexpr int BYTES = 2;
    static F at(const uint8_t* p, int64_t i) { return load_half(reinterpret_cast<const uint16_t*>(p) + i); }
};
struct WeightBF16 {
    static constexpr int BYTES = 2;
    static F at(const uint8_t* p, int64_t i) { return load_bfloat(reinterpret_cast<const uint16_t*>(p) + i); }
};

// Elements `from` on that fill no 16 lanes, with zeros behind them.
template <class T>
inline void tail(const uint8_t* weights, const float* x, int64_t from, int64_t columns, uint8_t* w, float* z) {
    std::memset(w, 0, LANES * T::BYTES);
    std::memset(z, 0, LANES * sizeof *z);
    std::memcpy(w, weights + from * T::BYTES, (columns - from) * T::BYTES);
    std::memcpy(z, x + from, (columns - from) * sizeof *z);
}

template <class T, int R, int C>
inline void tile(const uint8_t* weights, size_t row_bytes, int64_t columns, const float* x, float* y, int64_t stride) {
    F totals[R][C][VECTORS];
    for (auto& row : totals) {
        for (auto& pair : row) {
            for (F& lanes : pair) lanes = zero();
        }
    }
    const int64_t whole = columns / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int r = 0; r < R; r++) __builtin_prefetch(weights + r * row_bytes + i * T::BYTES + 1024);
        for (int v = 0; v < VECTORS; v++) {
            F b[C];
            for (int c = 0; c < C; c++) b[c] = load(x + c * columns + i + v * W);
            for (int r = 0; r < R; r++) {
                const F a = T::at(weights + r * row_bytes, i + v * W);
                for (int c = 0; c < C; c++) totals[r][c][v] = fma(a, b[c], totals[r][c][v]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) {
            if (whole < columns) {
                alignas(64) uint8_t w[LANES * T::BYTES];
                alignas(64) float z[LANES];
                tail<T>(weights + r * row_bytes, x + c * columns, whole, columns, w, z);
                for (int v = 0; v < VECTORS; v++) {
                    totals[r][c][v] = fma(T::at(w, v * W), load(z + v * W), totals[r][c][v]);
                }
            }
            y[c * stride + r] = fold(totals[r][c]);
        }
    }
}

// R rows of weights times all rows of activations.
template <class T, int R>
inline void strip(const uint8_t* weights, size_t row_bytes, int64_t columns, const float* x, int64_t rows, float* y,
                  int64_t stride) {
    int64_t c = 0;
    for (; c + 3 <= rows; c += 3) tile<T, R, 3>(weights, row_bytes, columns, x + c * columns, y + c * stride, stride);
    if (rows - c == 2) tile<T, R, 2>(weights, row_bytes, columns, x + c * columns, y + c * stride, stride);
    if (rows - c == 1) tile<T, R, 1>(weights, row_bytes, columns, x + c * columns, y + c * stride, stride);
}

template <class T>
void float_product(const uint8_t* data, int64_t count, int64_t columns, const float* x, const Block*, int64_t rows,
                   float* y, int64_t stride) {
    const size_t row_bytes = static_cast<size_t>(columns) * T::BYTES;
    int64_t i = 0;
    // One row of activations leaves registers for more rows of weights.
    if (rows == 1) {
        for (; i + 4 <= count; i += 4) strip<T, 4>(data + i * row_bytes, row_bytes, columns, x, rows, y + i, stride);
    }
    for (; i + 2 <= count; i += 2) strip<T, 2>(data + i * row_bytes, row_bytes, columns, x, rows, y + i, stride);
    for (; i < count; i++) strip<T, 1>(data + i * row_bytes, row_bytes, columns, x, rows, y + i, stride);
}

}  // namespace
