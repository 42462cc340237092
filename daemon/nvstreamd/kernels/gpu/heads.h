// How do heads of queries, keys and values come to where attention reads them? ARITHMETIC.md, sections 4 to 6.
#pragma once

constexpr int PAGE_TOKENS = 32, MOST_DIM = 256;

WORD const GpuStretch& stretch_of(const GpuAttend& call, int64_t number) {
    return reinterpret_cast<const GpuStretch*>(call.stretches)[number];
}
WORD uint16_t* page_of(const GpuAttend& call, const GpuStretch& stretch, int64_t number) {
    const int64_t page = reinterpret_cast<const int64_t*>(call.pages)[stretch.page + number];
    return reinterpret_cast<uint16_t*>(call.memory + page * call.page_bytes) + call.layer_at;
}

// Norms and turns a head of q or k, a warp each, and puts keys and values into their page. Blocks: (heads of all / 8,
// rows).
WORD void place(const GpuAttend& call) {
    SHARED(float, heads, ROW_WARPS * MOST_DIM);
    const int lane = thread() % 32;
    const int64_t row = block_y(), dim = call.dim, head = static_cast<int64_t>(block_x()) * ROW_WARPS + thread() / 32;
    const int64_t keys = head - call.heads, values = keys - call.kv_heads;
    if (values >= call.kv_heads) return;
    float* own = heads + thread() / 32 * MOST_DIM;
    const int64_t which = values >= 0 ? call.v : keys >= 0 ? call.k : call.q;
    const int64_t of = values >= 0 ? values : keys >= 0 ? keys : head, count = keys >= 0 ? call.kv_heads : call.heads;
    float* x = reinterpret_cast<float*>(which) + (row * count + of) * dim;
    for (int64_t i = lane; i < dim; i += 32) own[i] = x[i];
    sync_warp();
    const int64_t norm = values >= 0 ? 0 : keys >= 0 ? call.k_norm : call.q_norm;
    if (norm) {
        float strand = 0.0f;
        for (int64_t i = lane; i < dim; i += 32) strand = fma(own[i], own[i], strand);
        const float factor = divide(1.0f, root(add(divide(fold(strand), static_cast<float>(dim)),
                                                   static_cast<float>(call.epsilon))));
        const int64_t type = keys >= 0 ? call.k_norm_type : call.q_norm_type;
        for (int64_t i = lane; i < dim; i += 32) {
            own[i] = mul(mul(own[i], factor), element(reinterpret_cast<const uint8_t*>(norm), type, i));
        }
        sync_warp();
    }
    const int64_t half = dim / 2, apart = call.interleaved ? 1 : half, step = call.interleaved ? 2 : 1;
    for (int64_t pair = lane; values < 0 && pair < half; pair += 32) {
        const float cos = reinterpret_cast<const float*>(call.cos)[row * half + pair],
                    sin = reinterpret_cast<const float*>(call.sin)[row * half + pair];
        const float a = own[pair * step], b = own[pair * step + apart];
        own[pair * step] = sub(mul(a, cos), mul(b, sin));
        own[pair * step + apart] = add(mul(a, sin), mul(b, cos));
    }
    sync_warp();
    if (keys < 0) {
        for (int64_t i = lane; i < dim; i += 32) x[i] = own[i];
        return;
    }
    int64_t number = 0;
    while (row >= stretch_of(call, number).first + stretch_of(call, number).count) number++;
    const GpuStretch& stretch = stretch_of(call, number);
    const int64_t position = stretch.begin + row - stretch.first, token = position % PAGE_TOKENS;
    uint16_t* page = page_of(call, stretch, position / PAGE_TOKENS);
    const int64_t values_at = call.kv_heads * dim * PAGE_TOKENS;
    for (int64_t i = lane; i < dim; i += 32) {
        const uint16_t stored = static_cast<uint16_t>(to_half(limited(own[i], -65504.0f, 65504.0f)));
        if (values < 0) page[(keys * dim + i) * PAGE_TOKENS + token] = stored;
        else page[values_at + (values * PAGE_TOKENS + token) * dim + i] = stored;
    }
}
