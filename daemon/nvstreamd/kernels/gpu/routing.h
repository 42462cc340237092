// Which experts does a row go to? ARITHMETIC.md, section 9: a warp for each row.
#pragma once

// From scores [rows, of_each apart], of `columns` experts, come the experts of each row, in `other` [rows, used] int32,
// and their weights, in `out` likewise. Blocks: (1, rows), of a warp.
WORD void route(const GpuRows& call) {
    const int lane = thread();
    const int64_t used = call.used;
    const int64_t row = block_y(), count = call.columns;
    float* scores = reinterpret_cast<float*>(call.x) + row * call.of_each;
    int32_t* experts = reinterpret_cast<int32_t*>(call.other) + row * used;
    float* weights = reinterpret_cast<float*>(call.out) + row * used;
    float largest = 0.0f;
    for (int64_t rank = 0; rank < used; rank++) {
        // The best that is not chosen yet, of equal ones the lower number. A NaN is no better than what is there.
        int32_t best = -1;
        for (int64_t e = lane; e < count; e += 32) {
            bool taken = false;
            for (int64_t r = 0; r < rank; r++) taken |= experts[r] == e;
            if (!taken && (best < 0 || scores[e] > scores[best])) best = static_cast<int32_t>(e);
        }
        UNROLL
        for (int mask = 16; mask > 0; mask /= 2) {
            const int32_t other = static_cast<int32_t>(across(static_cast<uint32_t>(best), mask));
            if (other < 0 || other == best) continue;
            if (best < 0) {
                best = other;
                continue;
            }
            const int32_t low = other < best ? other : best, high = other < best ? best : other;
            best = scores[high] > scores[low] ? high : low;
        }
        if (lane == 0) experts[rank] = best;
        sync_warp();
        if (rank == 0) largest = scores[best];
    }
    float strand = 0.0f;
    for (int64_t e = lane; e < count; e += 32) strand = add(strand, exponential(sub(scores[e], largest)));
    const float total = fold(strand);
    if (lane > 0) return;
    float chosen = 0.0f;
    for (int64_t rank = 0; rank < used; rank++) {
        weights[rank] = divide(exponential(sub(scores[experts[rank]], largest)), total);
        chosen = add(chosen, weights[rank]);
    }
    const float least = chosen < 0x1p-14f ? 0x1p-14f : chosen;
    for (int64_t rank = 0; rank < used; rank++) weights[rank] = divide(weights[rank], least);
}
