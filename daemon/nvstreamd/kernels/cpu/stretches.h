// How is attention cut over threads? Into a few rows of one sequence and one key-value head at a time.
#pragma once

#include <algorithm>

#include "context.h"

namespace {

// Stretches cut to as many rows as share a key-value head's conversion.
void cut_stretches(std::vector<Stretch>& out, const Attend& call) {
    const int64_t most = stretch_rows(call.heads / call.kv_heads);
    out.clear();
    for (int64_t i = 0; i < call.stretch_count; i++) {
        const Stretch& stretch = call.stretches[i];
        for (int64_t done = 0; done < stretch.count; done += most) {
            out.push_back({stretch.first + done, std::min(most, stretch.count - done), stretch.begin + done, stretch.page});
        }
    }
}

void attend(Context& context, const Attend& call) {
    std::vector<Stretch>& stretches = context.stretches;
    cut_stretches(stretches, call);
    const int64_t count = static_cast<int64_t>(stretches.size());
    context.pool.run(count, [&](int64_t item, int) {
        const Stretch& stretch = stretches[static_cast<size_t>(item)];
        for (int64_t r = 0; r < stretch.count; r++) {
            const int64_t at = stretch.begin + r;
            context.kernels.place(&call, stretch.first + r, at % PAGE_TOKENS, call.pages[stretch.page + at / PAGE_TOKENS]);
        }
    });
    context.give_each(static_cast<size_t>(context.kernels.scratch(&call)));
    context.pool.run(count * call.kv_heads, [&](int64_t item, int thread) {
        float* scratch = context.own[static_cast<size_t>(thread)].get();
        context.kernels.attend(&call, &stretches[static_cast<size_t>(item / call.kv_heads)], item % call.kv_heads, scratch);
    });
}

}  // namespace
