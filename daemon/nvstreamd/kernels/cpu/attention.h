// How do queries meet the pages of their sequence? Page after page, with a running maximum (online softmax).
//
// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). A row sees the pages of its own past in
// order, so that nothing behind it and nothing beside it can change its result.
#pragma once

namespace {

constexpr int PANELS = PAGE_TOKENS / W;
constexpr int PANEL_ROWS = 3;

// totals [R][32] += a [R, depth] * b [depth, 32 of float16].
template <int R> inline void panel(const float* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int64_t depth,
                                   float* totals, int64_t stride) {
    F sums[R][PANELS];
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < PANELS; v++) sums[r][v] = load(totals + r * stride + v * W);
    }
    for (int64_t k = 0; k < depth; k++) {
        for (int v = 0; v < PANELS; v++) {
            const F column = load_half(b + k * b_stride + v * W);
            for (int r = 0; r < R; r++) sums[r][v] = fma(splat(a[r * a_stride + k]), column, sums[r][v]);
        }
    }
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < PANELS; v++) store(totals + r * stride + v * W, sums[r][v]);
    }
}

inline void panels(const float* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int64_t depth, float* totals,
                   int64_t stride, int64_t rows) {
    int64_t r = 0;
    for (; r + PANEL_ROWS <= rows; r += PANEL_ROWS) {
        panel<PANEL_ROWS>(a + r * a_stride, a_stride, b, b_stride, depth, totals + r * stride, stride);
    }
    if (rows - r == 2) panel<2>(a + r * a_stride, a_stride, b, b_stride, depth, totals + r * stride, stride);
    if (rows - r == 1) panel<1>(a + r * a_stride, a_stride, b, b_stride, depth, totals + r * stride, stride);
}

// Turns a head in place: pairs (i, i + half), or (2 i, 2 i + 1) where interleaved (RoFormer, section 3.2).
inline void turn(float* head, const float* cos, const float* sin, int64_t dim, bool interleaved) {
    const int64_t half = dim / 2, apart = interleaved ? 1 : half, step = interleaved ? 2 : 1;
    for (int64_t i = 0; i < half; i++) {
        float* a = head + i * step;
        const float x = a[0], y = a[apart];
        a[0] = x * cos[i] - y * sin[i];
        a[apart] = x * sin[i] + y * cos[i];
    }
}

inline uint16_t to_half(float x) {
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    float lanes[W] = {x};
    uint16_t halves[W];
    store_half(halves, load(lanes));
    return halves[0];
}

// Norms and turns the heads of a row, and puts its keys and values at `token` of `page`.
void place(const Attend* call, int64_t row, int64_t token, int64_t page) {
    const int64_t dim = call->dim;
    const float *cos = call->cos + row * dim / 2, *sin = call->sin + row * dim / 2;
    for (int64_t head = 0; head < call->heads; head++) {
        float* q = call->q + (row * call->heads + head) * dim;
        if (call->q_norm) norm(q, call->q_norm, dim, call->epsilon, q);
        turn(q, cos, sin, dim, call->interleaved);
    }
    for (int64_t head = 0; head < call->kv_heads; head++) {
        float* k = call->k + (row * call->kv_heads + head) * dim;
        if (call->k_norm) norm(k, call->k_norm, dim, call->epsilon, k);
        turn(k, cos, sin, dim, call->interleaved);
        const float* v = call->v + (row * call->kv_heads + head) * dim;
        const int64_t at = (page * call->kv_heads + head) * dim * PAGE_TOKENS;
        for (int64_t i = 0; i < dim; i++) {
            call->keys[at + i * PAGE_TOKENS + token] = to_half(k[i]);
            call->values[at + token * dim + i] = to_half(v[i]);
        }
    }
}

inline int64_t padded(int64_t dim) { return (dim + PAGE_TOKENS - 1) / PAGE_TOKENS * PAGE_TOKENS; }

int64_t scratch(const Attend* call) {
    const int64_t rows = span_rows(call->heads / call->kv_heads) * (call->heads / call->kv_heads);
    return rows * (call->dim + padded(call->dim) + PAGE_TOKENS + 2);
}

// Query rows of a span that share a key-value head, and what is known of them so far.
struct Queries {
    int64_t rows, dim, width;
    float *q, *mixed, *scores, *most, *total;
};

inline Queries gather(const Attend* call, const Span* span, int64_t kv_head, float* scratch) {
    const int64_t group = call->heads / call->kv_heads, rows = span->count * group, width = padded(call->dim);
    Queries s{rows, call->dim, width, scratch, nullptr, nullptr, nullptr, nullptr};
    s.mixed = s.q + rows * call->dim;
    s.scores = s.mixed + rows * width;
    s.most = s.scores + rows * PAGE_TOKENS;
    s.total = s.most + rows;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(call->dim));
    for (int64_t r = 0; r < rows; r++) {
        const int64_t head = kv_head * group + r % group;
        const float* q = call->q + ((span->first + r / group) * call->heads + head) * call->dim;
        for (int64_t i = 0; i < call->dim; i++) s.q[r * call->dim + i] = q[i] * scale;
        s.most[r] = -__builtin_inff();
        s.total[r] = 0;
    }
    std::memset(s.mixed, 0, rows * width * sizeof(float));
    return s;
}

// Scores of a page to weights e^(score - maximum), zeros from `seen` on; what was mixed so far shrinks accordingly.
inline void weigh(const Queries& s, int64_t r, int64_t seen) {
    float* scores = s.scores + r * PAGE_TOKENS;
    float most = s.most[r];
    for (int64_t t = 0; t < seen; t++) most = scores[t] > most ? scores[t] : most;
    for (int v = 0; v < PANELS; v++) store(scores + v * W, exponential(sub(load(scores + v * W), splat(most))));
    for (int64_t t = seen; t < PAGE_TOKENS; t++) scores[t] = 0;
    F sums = zero();
    for (int v = 0; v < PANELS; v++) sums = add(sums, load(scores + v * W));
    float shrink[W];
    store(shrink, exponential(splat(s.most[r] - most)));
    s.total[r] = s.total[r] * shrink[0] + sum(sums);
    if (s.most[r] != most) {
        float* mixed = s.mixed + r * s.width;
        for (int64_t i = 0; i < s.width; i += W) store(mixed + i, mul(load(mixed + i), splat(shrink[0])));
    }
    s.most[r] = most;
}

inline void mix_page(const Attend* call, const Span* span, const Queries& s, int64_t number, int64_t at) {
    const int64_t group = call->heads / call->kv_heads, dim = s.dim;
    std::memset(s.scores, 0, s.rows * PAGE_TOKENS * sizeof(float));
    panels(s.q, dim, call->keys + at, PAGE_TOKENS, dim, s.scores, PAGE_TOKENS, s.rows);
    int64_t first = s.rows, most_seen = 0;
    for (int64_t r = 0; r < s.rows; r++) {
        const int64_t left = span->begin + r / group + 1 - number * PAGE_TOKENS;
        if (left <= 0) continue;
        const int64_t seen = left < PAGE_TOKENS ? left : PAGE_TOKENS;
        weigh(s, r, seen);
        first = r < first ? r : first;
        most_seen = seen > most_seen ? seen : most_seen;
    }
    for (int64_t column = 0; column < dim; column += PAGE_TOKENS) {
        panels(s.scores + first * PAGE_TOKENS, PAGE_TOKENS, call->values + at + column, dim, most_seen,
               s.mixed + first * s.width + column, s.width, s.rows - first);
    }
}

// Causal attention of a span's rows over one key-value head -> out.
void attend(const Attend* call, const Span* span, int64_t kv_head, float* scratch) {
    const Queries s = gather(call, span, kv_head, scratch);
    const int64_t group = call->heads / call->kv_heads;
    const int64_t pages = (span->begin + span->count + PAGE_TOKENS - 1) / PAGE_TOKENS;
    for (int64_t number = 0; number < pages; number++) {
        const int64_t page = call->pages[span->page + number];
        mix_page(call, span, s, number, (page * call->kv_heads + kv_head) * s.dim * PAGE_TOKENS);
    }
    for (int64_t r = 0; r < s.rows; r++) {
        float* out = call->out + ((span->first + r / group) * call->heads + kv_head * group + r % group) * s.dim;
        for (int64_t i = 0; i < s.dim; i++) out[i] = s.mixed[r * s.width + i] / s.total[r];
    }
}

}  // namespace
