// How are block-quantised weights multiplied? W rows of weights at a time, unpacked once for all rows of activations.
//
// Every pair of a weight row and an activation row is summed in one order, whatever stands beside it: the products of a
// block (or half) are an exact integer, and blocks follow each other in one chain of fused multiply-adds. So results
// depend neither on the number of rows nor on how work is split, nor on the instruction set.
#pragma once

namespace {

// The integer of half `h` of a block, or of the whole where the format has no halves. `magnitudes` gives those of w[i]:
// kept where many rows of activations share them, computed for a single one, whose registers they would fill.
template <class T, class M>
[[gnu::always_inline]] inline V dot(const Part& p, const M& magnitudes, const Block& x, int h) {
    constexpr int N = 8 / T::HALVES;
    const int which = T::HALVES == 1 ? 2 : h;
    if constexpr (T::SIGNED) {
        const auto of_half = [&](int i) { return magnitudes(h * N + i); };
        return dot_signed<N>(p.w + h * N, of_half, x.q + h * 4 * N, x.whole[which]);
    } else {
        const V total = dot_unsigned<N, T::GROUP < N ? T::GROUP : N>(p.w + h * N, x.q + h * 4 * N);
        if constexpr (T::OFFSET == 0) return total;
        constexpr int shift = __builtin_ctz(T::OFFSET | 1 << 30);
        return sub32(total, left<shift>(splat32(x.whole[which])));
    }
}

template <class T, class M>
[[gnu::always_inline]] inline F step(const Part& p, const M& magnitudes, const Block& x, F total) {
    for (int h = 0; h < T::HALVES; h++) {
        total = fma(p.scale[h], mul(splat(x.d), to_float(dot<T>(p, magnitudes, x, h))), total);
    }
    if constexpr (T::LOW) {
        for (int h = 0; h < T::HALVES; h++) {
            total = fma(p.low[h], splat(x.scaled[T::HALVES == 1 ? 2 : h]), total);
        }
    }
    return total;
}

// Parts J on of one block; totals [rows][W]. `x` is the block of the first row, `width` rows lie beside each other.
template <class T, bool ONE, int J>
[[gnu::always_inline]] inline void parts(Rows rows, typename T::Head& head, const Block* x, int64_t width,
                                         float* totals, F& one) {
    if constexpr (J < T::LENGTH / BLOCK) {
        Part p;
        T::template part<J>(rows, head, p);
        if constexpr (ONE) {
            one = step<T>(p, [&](int i) { return magnitude(p.w[i]); }, *x, one);
        } else {
            V magnitudes[8];
            if constexpr (T::SIGNED) {
                for (int i = 0; i < 8; i++) magnitudes[i] = magnitude(p.w[i]);
            }
            const auto kept = [&](int i) { return magnitudes[i]; };
            for (int64_t c = 0; c < width; c++, totals += W) store(totals, step<T>(p, kept, x[c], load(totals)));
            totals -= width * W;
        }
        parts<T, ONE, J + 1>(rows, head, x + width, width, totals, one);
    }
}

// W rows from `data` on times a tile of `width` rows of activations -> totals [width][W].
template <class T, bool ONE>
inline void group(const uint8_t* data, size_t stride, int64_t columns, const Block* x, int64_t width, float* totals) {
    F one = zero();
    if constexpr (!ONE) {
        for (int64_t c = 0; c < width; c++) store(totals + c * W, zero());
    }
    const int64_t blocks = columns / T::LENGTH;
    for (int64_t b = 0; b < blocks; b++) {
        // The next group of rows, front to back: W streams of their own would be too many for the prefetcher.
        const uint8_t* ahead = data + (W * stride) + b * T::BYTES * W;
        for (int i = 0; i < T::BYTES * W; i += 64) __builtin_prefetch(ahead + i);
        const Rows rows{data + b * T::BYTES, stride};
        typename T::Head head;
        T::open(rows, head);
        parts<T, ONE, 0>(rows, head, x + b * (T::LENGTH / BLOCK) * width, width, totals, one);
    }
    if constexpr (ONE) store(totals, one);
}

template <class T>
void integer_product(const uint8_t* data, int64_t count, int64_t columns, const float*, const Block* blocks,
                     int64_t rows, float* y, int64_t stride) {
    const size_t row_bytes = static_cast<size_t>(columns / T::LENGTH) * T::BYTES;
    float totals[TILE * W];
    for (int64_t tile = 0; tile < rows; tile += TILE) {
        const int64_t width = rows - tile < TILE ? rows - tile : TILE;
        const Block* x = blocks + block_index(tile, 0, rows, columns / BLOCK);
        for (int64_t row = 0; row < count;) {
            // Fewer than W rows are left: one row in all lanes, at a stride of 0.
            const int64_t lanes = count - row < W ? 1 : W;
            const size_t apart = lanes == 1 ? 0 : row_bytes;
            if (width == 1) {
                group<T, true>(data + row * row_bytes, apart, columns, x, 1, totals);
            } else {
                group<T, false>(data + row * row_bytes, apart, columns, x, width, totals);
            }
            for (int64_t c = 0; c < width; c++) {
                for (int64_t i = 0; i < lanes; i++) y[(tile + c) * stride + row + i] = totals[c * W + i];
            }
            row += lanes;
        }
    }
}

}  // namespace
