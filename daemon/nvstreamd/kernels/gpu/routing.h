// Which experts does a row go to? ARITHMETIC.md, section 9: a warp for each row.
#pragma once

constexpr int MOST_EXPERTS = 1024;  // of a layer (architectures/keys.py): a bit for each of a lane's

// The best of a row's experts that is not chosen yet, and its score; -1 where there is none.
struct Choice {
    int32_t expert;
    float score;

    // Of equal scores the lower number is taken. A NaN is no better than what is there.
    WORD void compare(const Choice& other) {
        if (other.expert < 0 || other.expert == expert) return;
        const bool better = other.expert < expert ? !(score > other.score) : other.score > score;
        if (expert < 0 || better) *this = other;
    }
};

// From scores [rows, of_each apart], of `columns` experts, come the experts of each row, in `other` [rows, used] int32,
// and their weights, in `out` likewise. Blocks: (1, rows), of a warp.
WORD void route(const GpuRows& call) {
    SHARED(float, chosen, MOST_EXPERTS);
    const int lane = thread(), used = static_cast<int>(call.used), count = static_cast<int>(call.columns);
    const int64_t row = block_y();
    const float* scores = reinterpret_cast<const float*>(call.x) + row * call.of_each;
    int32_t* experts = reinterpret_cast<int32_t*>(call.other) + row * used;
    float* weights = reinterpret_cast<float*>(call.out) + row * used;
    uint32_t taken = 0;
    float largest = 0.0f;
    for (int rank = 0; rank < used; rank++) {
        Choice best{-1, 0.0f};
        UNROLL_BY(4)
        for (int i = 0; i < (count - lane + 31) / 32; i++) {
            if (!(taken >> i & 1u)) best.compare({lane + 32 * i, scores[lane + 32 * i]});
        }
        UNROLL
        for (int mask = 16; mask > 0; mask /= 2) {
            best.compare({static_cast<int32_t>(across(static_cast<uint32_t>(best.expert), mask)),
                          across(best.score, mask)});
        }
        if (best.expert % 32 == lane) taken |= 1u << best.expert / 32;
        if (lane == 0) {
            experts[rank] = best.expert;
            chosen[rank] = best.score;
        }
        if (rank == 0) largest = best.score;
    }
    float strand = 0.0f;
    UNROLL_BY(4)
    for (int e = lane; e < count; e += 32) strand = add(strand, exponential(sub(scores[e], largest)));
    const float total = fold(strand);
    sync_warp();
    for (int rank = lane; rank < used; rank += 32) {
        chosen[rank] = divide(exponential(sub(chosen[rank], largest)), total);
    }
    sync_warp();
    float sum = 0.0f;
    for (int rank = 0; rank < used; rank++) sum = add(sum, chosen[rank]);
    const float least = sum < 0x1p-14f ? 0x1p-14f : sum;
    for (int rank = lane; rank < used; rank += 32) weights[rank] = divide(chosen[rank], least);
}
