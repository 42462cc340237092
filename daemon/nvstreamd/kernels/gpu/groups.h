// Which rows does each expert serve? Pairs of a row and one of its experts are dealt to groups, expert by expert: what
// belongs together is multiplied together, and each expert's weights are read once for several rows.
#pragma once

constexpr int EXPERTS_EACH = MOST_EXPERTS / ROW_THREADS;  // experts of a thread

// The sums of all threads up to each, its own included. Everybody takes part.
WORD int32_t sum_before(int32_t own, int32_t* both) {
    int from = 0;
    both[thread()] = own;
    sync_block();
    for (int step = 1; step < ROW_THREADS; step *= 2) {
        const int32_t before = thread() >= step ? both[from + thread() - step] : 0;
        const int32_t sum = both[from + thread()] + before;
        from = ROW_THREADS - from;
        both[from + thread()] = sum;
        sync_block();
    }
    return both[from + thread()];
}

// Which of an expert's rows comes first is nobody's concern: rows know nothing of each other. Blocks: one.
WORD void group(const GpuGrouping& call) {
    SHARED(int32_t, count, MOST_EXPERTS);
    SHARED(int32_t, slot, MOST_EXPERTS);
    SHARED(int32_t, slots_before, 2 * ROW_THREADS);
    SHARED(int32_t, groups_before, 2 * ROW_THREADS);
    const int size = static_cast<int>(call.size), first = thread() * EXPERTS_EACH;
    const int32_t* choices = reinterpret_cast<const int32_t*>(call.choices);
    int64_t* places = reinterpret_cast<int64_t*>(call.places);
    GpuGroup* groups = reinterpret_cast<GpuGroup*>(call.groups);
    for (int e = thread(); e < MOST_EXPERTS; e += ROW_THREADS) count[e] = 0;
    for (int64_t i = thread(); i < call.slots; i += ROW_THREADS) places[i] = -1;
    sync_block();
    for (int64_t pair = thread(); pair < call.pairs; pair += ROW_THREADS) next_of(&count[choices[pair]]);
    sync_block();
    int32_t slots = 0, many = 0;
    for (int e = first; e < first + EXPERTS_EACH; e++) {
        slots += (count[e] + 7) / 8 * 8;
        many += (count[e] + size - 1) / size;
    }
    int32_t at = sum_before(slots, slots_before) - slots, number = sum_before(many, groups_before) - many;
    for (int e = first; e < first + EXPERTS_EACH; e++) {
        slot[e] = at;
        for (int32_t begin = 0; begin < count[e]; begin += size) {
            const int32_t left = count[e] - begin;
            groups[number++] = {reinterpret_cast<const int64_t*>(call.table)[e], at + begin, left < size ? left : size};
        }
        at += (count[e] + 7) / 8 * 8;
    }
    if (thread() == ROW_THREADS - 1) {
        for (; number < call.most; number++) groups[number] = {0, 0, 0};
    }
    sync_block();
    for (int64_t pair = thread(); pair < call.pairs; pair += ROW_THREADS) places[next_of(&slot[choices[pair]])] = pair;
}
