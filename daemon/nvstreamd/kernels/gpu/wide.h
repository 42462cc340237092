// How are weights multiplied by many rows? A block of threads holds the sums of a rectangle, and its operands pass by.
//
// Each warp has M tiles of 16 weight rows by N tiles of 8 rows of activations, all in registers, in GM by GN warps. What
// the next quads need is on its way into the block's memory meanwhile.
#pragma once

// What a stage holds: pieces of weights, then what belongs to tiles of 8 rows of activations, plane by plane.
template <class T, int TM, int TN> struct Stage {
    static constexpr int LOWS = T::LOW ? T::HALVES : 0;
    static constexpr int Q = TM * Parts<T>::BYTES, D = Q + TN * 1024, SUMS = D + TN * 128, BYTES = SUMS + LOWS * TN * 128;
};

// So many threads bring `bytes`, a multiple of 16 and no more than MOST.
template <int THREADS, int MOST> WORD void fetch_all(uint8_t* to, const uint8_t* from, int bytes) {
    UNROLL
    for (int i = 0; i < MOST; i += THREADS * 16) {
        const int at = i + thread() * 16;
        if (at < bytes) fetch(to + at, from + at);
    }
}

template <class T, int M, int N, int GM, int GN, int STAGES> struct Wide {
    static constexpr int TM = M * GM, TN = N * GN, LOWS = T::LOW ? T::HALVES : 0;
    using Memory = Stage<T, TM, TN>;
    const GpuProducts& call;
    const GpuMatrix& matrix;
    int64_t base, tile, eight, quads;  // what weights count from; the rectangle's first tiles
    int tiles, eights;                 // of which so many exist
    int64_t end;                       // of the rows
    static constexpr int THREADS = GM * GN * 32;
    uint8_t* memory;
    float total[M][N][4];

    WORD void bring(int64_t quad) {
        uint8_t* to = memory + quad % STAGES * Memory::BYTES;
        const uint8_t* data = reinterpret_cast<const uint8_t*>(base + matrix.data);
        fetch_all<THREADS, TM * Parts<T>::BYTES>(
            to, data + piece_at(matrix.tiles, quads, tile, quad, Parts<T>::BYTES), tiles * Parts<T>::BYTES);
        const int64_t at = quad * call.x.eights + eight;
        fetch_all<THREADS, TN * 1024>(to + Memory::Q, reinterpret_cast<const uint8_t*>(call.x.q) + at * 1024, eights * 1024);
        fetch_all<THREADS, TN * 128>(to + Memory::D, reinterpret_cast<const uint8_t*>(call.x.d) + at * 128, eights * 128);
        UNROLL
        for (int h = 0; h < LOWS; h++) {
            const int64_t from = LOWS == 1 ? call.x.sums : call.x.halves + h * call.x.half_bytes;
            fetch_all<THREADS, TN * 128>(to + Memory::SUMS + h * TN * 128,
                                         reinterpret_cast<const uint8_t*>(from) + at * 128, eights * 128);
        }
    }
    // Block j of what is there, by a warp's tiles from `m` and `n` on.
    WORD void multiply(const uint8_t* from, int j, int m, int n, int lane) {
        Two b[N];
        Times<T> times[N][2];
        float sums[LOWS ? LOWS : 1][N][2];
        UNROLL
        for (int k = 0; k < N; k++) {
            const int at = (n + k) * QUAD + j;
            b[k] = reinterpret_cast<const Two*>(from + Memory::Q)[at * 32 + lane];
            const Two d = reinterpret_cast<const Two*>(from + Memory::D)[at * 4 + lane % 4];
            times[k][0] = Times<T>::by(from_bits(d.x));
            times[k][1] = Times<T>::by(from_bits(d.y));
            UNROLL
            for (int h = 0; h < LOWS; h++) {
                const Two s = reinterpret_cast<const Two*>(from + Memory::SUMS + h * TN * 128)[at * 4 + lane % 4];
                sums[h][k][0] = from_bits(s.x);
                sums[h][k][1] = from_bits(s.y);
            }
        }
        UNROLL
        for (int i = 0; i < M; i++) {
            const Block32<T> block = block_at<T>(from + (m + i) * Parts<T>::BYTES, j, lane);
            uint32_t a[4];
            block.operand(a);
            UNROLL
            for (int h = 0; h < T::HALVES; h++) {
                const float scale[2] = {block.scale_of(h, 0), block.scale_of(h, 1)};
                UNROLL
                for (int k = 0; k < N; k++) {
                    int32_t r[4];
                    if constexpr (T::HALVES == 1) dot32<is_signed<T>()>(r, a, b[k].x, b[k].y, MAGIC_BITS);
                    else dot16<is_signed<T>()>(r, a[2 * h], a[2 * h + 1], h ? b[k].y : b[k].x, MAGIC_BITS);
                    UNROLL
                    for (int c = 0; c < 4; c++) total[i][k][c] = fma(scale[c / 2], times[k][c % 2].of(r[c]), total[i][k][c]);
                }
            }
            UNROLL
            for (int h = 0; h < LOWS; h++) {
                const float low[2] = {block.low_of(h, 0), block.low_of(h, 1)};
                UNROLL
                for (int k = 0; k < N; k++) {
                    UNROLL
                    for (int c = 0; c < 4; c++) total[i][k][c] = fma(low[c / 2], sums[h][k][c % 2], total[i][k][c]);
                }
            }
        }
    }
    WORD void run() {
        const int warp = thread() / 32, lane = thread() % 32, m = warp / GN * M, n = warp % GN * N;
        UNROLL
        for (int i = 0; i < M * N * 4; i++) total[i / (4 * N)][i / 4 % N][i % 4] = 0.0f;
        UNROLL
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < quads) bring(s);
            seal();
        }
        for (int64_t quad = 0; quad < quads; quad++) {
            arrived<STAGES - 2>();
            sync_block();
            if (quad + STAGES - 1 < quads) bring(quad + STAGES - 1);
            seal();
            const uint8_t* from = memory + quad % STAGES * Memory::BYTES;
            const int64_t left = call.blocks - quad * QUAD;
            if (left >= QUAD) {
                // Two at a time: all four at once need more registers than there are.
                UNROLL_BY(2)
                for (int j = 0; j < QUAD; j++) multiply(from, j, m, n, lane);
            } else {
                NO_UNROLL
                for (int j = 0; j < left; j++) multiply(from, j, m, n, lane);
            }
        }
        UNROLL
        for (int i = 0; i < M; i++) {
            UNROLL
            for (int k = 0; k < N; k++) {
                UNROLL
                for (int c = 0; c < 4; c++) {
                    write(call, matrix, (eight + n + k) * 8 + lane % 4 * 2 + c % 2,
                          m + i < tiles ? (tile + m + i) * TILE + lane / 4 + c / 2 * 8 : matrix.rows, total[i][k][c], end);
                }
            }
        }
    }
};

// Blocks: (rectangles of all matrices, tiles of activations / TN).
template <class T, int M, int N, int GM, int GN, int STAGES> WORD void wide(const GpuProducts& call, uint8_t* memory) {
    using All = Wide<T, M, N, GM, GN, STAGES>;
    int64_t number = block_x(), which = 0;
    while (number >= (call.matrix[which].tiles + All::TM - 1) / All::TM) {
        number -= (call.matrix[which++].tiles + All::TM - 1) / All::TM;
    }
    const GpuMatrix& matrix = call.matrix[which];
    const Share share = share_of(call);
    if (share.first == share.end) return;
    const int64_t tile = number * All::TM, tiles = matrix.tiles - tile;
    // A group's rows are one rectangle's; else those of a block row are.
    const int64_t eight = call.groups ? share.first / 8 : static_cast<int64_t>(block_y()) * All::TN;
    const int64_t eights = (call.groups ? (share.end + 7) / 8 : call.x.eights) - eight;
    All all{call, matrix, share.base, tile, eight, call.quads, static_cast<int>(tiles < All::TM ? tiles : All::TM),
            static_cast<int>(eights < All::TN ? eights : All::TN), share.end, memory, {}};
    all.run();
}
