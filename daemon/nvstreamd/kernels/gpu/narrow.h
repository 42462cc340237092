// How are weights multiplied by 1 to 16 rows? At the speed at which memory gives them.
//
// A tile of 16 weight rows belongs to a block of threads, whose warps take turns at stretches of columns. Each has a
// ring of its own in the block's memory, into which weights and activations come long before they are multiplied. All of
// that is exact: integers, and their products with d. What has an order, the chain of fused multiply-adds over blocks,
// goes from warp to warp like a baton.
#pragma once

// A quad in a warp's ring: the piece of the tile, then of each tile of 8 rows of activations what is wanted of it. Of a
// single row (C is 1) that is a quarter of its first lanes' operands.
template <class T, int C, int NT> struct Ring {
    static constexpr int LOWS = T::LOW ? T::HALVES : 0;
    static constexpr int OPERAND = C == 1 ? 128 : 1024, SCALES = 128, X = OPERAND + SCALES * (1 + LOWS);
    static constexpr int BYTES = Parts<T>::BYTES + NT * X;

    // Brings the quad whose piece lies at `piece`, number `quad` of the activations; of a single row, that of `row`.
    WORD static void bring(uint8_t* to, const uint8_t* piece, const GpuActivations& x, int64_t row, int64_t quad,
                           int lane) {
        UNROLL
        for (int i = 0; i < Parts<T>::BYTES; i += 512) {
            const int at = i + lane * 16;
            if (at < Parts<T>::BYTES) fetch(to + at, piece + at);
        }
        UNROLL
        for (int n = 0; n < NT; n++) {
            uint8_t* own = to + Parts<T>::BYTES + n * X;
            const int64_t eight = quad * x.eights + n + row / 8, g = row % 8;
            const uint8_t* q = reinterpret_cast<const uint8_t*>(x.q) + eight * 1024;
            UNROLL
            for (int i = 0; i < OPERAND; i += 512) {
                const int at = i + lane * 16;
                if (C == 1 && at < OPERAND) fetch(own + at, q + at / 32 * 256 + g * 32 + at % 32);
                if (C > 1) fetch(own + at, q + at);
            }
            // Eight lanes a plane.
            const int plane = lane / 8, at = lane % 8 * 16;
            const int64_t from = plane == 0 ? x.d : LOWS == 1 ? x.sums : x.halves + (plane - 1) * x.half_bytes;
            if (plane <= LOWS) {
                fetch(own + OPERAND + plane * SCALES + at,
                      reinterpret_cast<const uint8_t*>(from) + eight * SCALES + at);
            }
        }
    }
};

// What the blocks of a quad come to, NT tiles of 8 rows of activations, of which a lane has C columns each.
template <class T, int C, int NT> struct Terms {
    using Own = Ring<T, C, NT>;
    static constexpr int LOWS = Own::LOWS;
    float whole[QUAD][T::HALVES][NT][2 * C], scale[QUAD][T::HALVES][2];
    float low[QUAD][LOWS ? LOWS : 1][2], sums[QUAD][LOWS ? LOWS : 1][NT][C];

    // A single row is row g of its eight.
    WORD void find(const uint8_t* quad, int g, int lane) {
        UNROLL
        for (int j = 0; j < QUAD; j++) {
            const Block32<T> block = block_at<T>(quad, j, lane);
            uint32_t a[4];
            block.operand(a);
            UNROLL
            for (int h = 0; h < T::HALVES; h++) {
                UNROLL
                for (int row = 0; row < 2; row++) {
                    scale[j][h][row] = block.scale_of(h, row);
                    if constexpr (LOWS) low[j][h][row] = block.low_of(h, row);
                }
            }
            UNROLL
            for (int n = 0; n < NT; n++) multiply(a, quad + Parts<T>::BYTES + n * Own::X, j, n, g, lane);
        }
    }
    // The numbers of a lane's columns, of which a single row has one.
    WORD static Two columns(const float* at) {
        if constexpr (C > 1) return *reinterpret_cast<const Two*>(at);
        else return {bits(*at), 0};
    }
    WORD void multiply(const uint32_t (&a)[4], const uint8_t* x, int j, int n, int g, int lane) {
        Two b{0, 0};
        if (C > 1 || lane < 4) b = reinterpret_cast<const Two*>(x)[j * (C > 1 ? 32 : 4) + lane];
        // By column: d, then the sums of other planes behind it.
        const float* scales = reinterpret_cast<const float*>(x + Own::OPERAND) + 8 * j + (C > 1 ? lane % 4 * 2 : g);
        const Two d = columns(scales);
        const Times<T> times[2] = {Times<T>::by(from_bits(d.x)), Times<T>::by(from_bits(d.y))};
        int32_t r[2][4];
        if constexpr (T::HALVES == 1) {
            dot32<is_signed<T>()>(r[0], a, b.x, b.y, MAGIC_BITS);
        } else {
            dot16<is_signed<T>()>(r[0], a[0], a[1], b.x, MAGIC_BITS);
            dot16<is_signed<T>()>(r[1], a[2], a[3], b.y, MAGIC_BITS);
        }
        UNROLL
        for (int h = 0; h < T::HALVES; h++) {
            UNROLL
            for (int i = 0; i < 2; i++) {
                UNROLL
                for (int c = 0; c < C; c++) whole[j][h][n][i * C + c] = times[c].of(r[h][2 * i + c]);
            }
        }
        UNROLL
        for (int h = 0; h < LOWS; h++) {
            const Two s = columns(scales + (h + 1) * 32);
            sums[j][h][n][0] = from_bits(s.x);
            if constexpr (C > 1) sums[j][h][n][C - 1] = from_bits(s.y);
        }
    }
    // The chain over the quad's blocks; over `blocks` of them at the end of a row.
    template <bool END> WORD void chain(float (&total)[NT][2 * C], int blocks) const {
        UNROLL
        for (int j = 0; j < QUAD; j++) {
            if (END && j >= blocks) return;
            UNROLL
            for (int n = 0; n < NT; n++) {
                UNROLL
                for (int i = 0; i < 2 * C; i++) {
                    UNROLL
                    for (int h = 0; h < T::HALVES; h++) {
                        total[n][i] = fma(scale[j][h][i / C], whole[j][h][n][i], total[n][i]);
                    }
                    UNROLL
                    for (int h = 0; h < LOWS; h++) {
                        total[n][i] = fma(low[j][h][i / C], sums[j][h][n][i % C], total[n][i]);
                    }
                }
            }
        }
    }
};

// The baton: the sums so far of each lane, between warps that take turns.
template <int COUNT, int WARPS> struct Baton {
    float* own;
    int warp;

    WORD void take(float* total) const {
        await_neighbour<WARPS>(1 + warp);
        UNROLL
        for (int i = 0; i < COUNT; i++) total[i] = own[32 * i];
    }
    WORD void give(const float* total) const {
        UNROLL
        for (int i = 0; i < COUNT; i++) own[32 * i] = total[i];
        announce_to_neighbour<WARPS>(1 + (warp + 1) % WARPS);
    }
};

// WARPS take turns at Q quads each, of which STAGES - 1 turns are on their way. Blocks: all tiles of all matrices.
template <class T, int C, int NT, int Q, int STAGES, int WARPS>
WORD void narrow(const GpuProducts& call, float* hand, uint8_t* memory) {
    using Own = Ring<T, C, NT>;
    const int warp = thread() / 32, lane = thread() % 32;
    const int quads = static_cast<int>(call.quads), turns = (quads + Q - 1) / Q, one = static_cast<int>(call.one);
    int64_t tile = block_x();
    const GpuMatrix& matrix = matrix_of(call, tile);
    const Share share = share_of(call);
    if (share.first == share.end) return;
    const int64_t row = share.x;
    const int64_t begin = piece_at(matrix.tiles, quads, tile, 0, Parts<T>::BYTES);
    const int64_t apart = piece_at(matrix.tiles, quads, tile, 1, Parts<T>::BYTES) - begin;
    const uint8_t* first = reinterpret_cast<const uint8_t*>(share.base + matrix.data) + begin;
    uint8_t* ring = memory + warp * (STAGES * Q * Own::BYTES);
    const auto bring = [&](int turn, int stage) {
        UNROLL
        for (int k = 0; k < Q; k++) {
            const int quad = turn * Q + k;
            uint8_t* to = ring + (stage * Q + k) * Own::BYTES;
            if (quad < quads) Own::bring(to, first + quad * apart, call.x, row, quad, lane);
        }
        seal();
    };
    UNROLL
    for (int s = 0; s < STAGES - 1; s++) bring(warp + s * WARPS, s);
    float total[NT][2 * C] = {};
    const Baton<NT * 2 * C, WARPS> baton{hand + lane, warp};
    int stage = 0;
    for (int turn = warp; turn < turns; turn += WARPS) {
        arrived<STAGES - 2>();
        // What came is everybody's now, and nobody reads any more what comes next is written over.
        sync_warp();
        bring(turn + (STAGES - 1) * WARPS, stage == 0 ? STAGES - 1 : stage - 1);
        Terms<T, C, NT> terms[Q];
        UNROLL
        for (int k = 0; k < Q; k++) {
            if (k == 0 || turn * Q + k < quads) terms[k].find(ring + (stage * Q + k) * Own::BYTES, static_cast<int>(row % 8), lane);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const int left = static_cast<int>(call.blocks) - turn * Q * QUAD;
        // A loop of one turn, which the compiler cannot know: it would sink all of this to where the baton is held.
        NO_UNROLL
        for (int held = 0; held < (WARPS > 1 ? one : 1); held++) {
            if (turn > 0 && WARPS > 1) baton.take(&total[0][0]);
            if (left >= Q * QUAD) {
                UNROLL
                for (int k = 0; k < Q; k++) terms[k].template chain<false>(total, QUAD);
            } else {
                UNROLL
                for (int k = 0; k < Q; k++) terms[k].template chain<true>(total, left - k * QUAD);
            }
            if (turn + 1 < turns && WARPS > 1) baton.give(&total[0][0]);
        }
    }
    if (warp != (turns - 1) % WARPS) return;
    UNROLL
    for (int n = 0; n < NT; n++) {
        UNROLL
        for (int i = 0; i < 2 * C; i++) {
            // Of a single row, one lane in four has the result.
            if (C == 1 && lane % 4 > 0) continue;
            write(call, matrix, share.first + n * 8 + lane % 4 * 2 + i % C, tile * TILE + lane / 4 + i / C * 8, total[n][i],
                  share.end);
        }
    }
}
