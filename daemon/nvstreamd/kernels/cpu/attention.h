// How do queries meet the pages of their sequence? Page after page, with a running maximum (online softmax).
//
// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). A row sees the pages of its own past in
// order, so that nothing behind it and nothing beside it can change its result. Chunks of pages by absolute position
// stand for themselves and are joined in order, so that a device can work on many of them at once (ARITHMETIC.md,
// section 5).
#pragma once

namespace {

constexpr int PANELS = PAGE_TOKENS / W;
constexpr int64_t CHUNK_PAGES = 8;  // 256 tokens
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
        const int64_t at = page * call->page_stride + head * dim * PAGE_TOKENS;
        for (int64_t i = 0; i < dim; i++) {
            call->keys[at + i * PAGE_TOKENS + token] = to_half(k[i]);
            call->values[at + token * dim + i] = to_half(v[i]);
        }
    }
}

inline int64_t padded(int64_t dim) { return (dim + PAGE_TOKENS - 1) / PAGE_TOKENS * PAGE_TOKENS; }

int64_t scratch(const Attend* call) {
    const int64_t rows = stretch_rows(call->heads / call->kv_heads) * (call->heads / call->kv_heads);
    return rows * (call->dim + 2 * padded(call->dim) + PAGE_TOKENS + 4);
}

// What rows found in the pages so far: the largest score, the sum of the weights e^(score - most), and the values times
// these weights, [rows, width].
struct Found {
    float *most, *total, *mixed;
};

// Query rows of a stretch that share a key-value head; what they found in the chunk at hand, and in all chunks before.
struct Queries {
    int64_t rows, dim, width;
    float *q, *scores;
    Found chunk, all;
};

inline Found found_at(float*& scratch, int64_t rows, int64_t width) {
    const Found found{scratch, scratch + rows, scratch + 2 * rows};
    scratch += rows * (width + 2);
    return found;
}

inline void begin(const Found& found, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) found.most[r] = -__builtin_inff();
    std::memset(found.total, 0, rows * sizeof(float));
    std::memset(found.mixed, 0, rows * width * sizeof(float));
}

inline Queries gather(const Attend* call, const Stretch* stretch, int64_t kv_head, float* scratch) {
    const int64_t group = call->heads / call->kv_heads, rows = stretch->count * group, width = padded(call->dim);
    Queries s{rows, call->dim, width, scratch, scratch + rows * call->dim, {}, {}};
    scratch = s.scores + rows * PAGE_TOKENS;
    s.chunk = found_at(scratch, rows, width);
    s.all = found_at(scratch, rows, width);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t head = kv_head * group + r % group;
        const float* q = call->q + ((stretch->first + r / group) * call->heads + head) * call->dim;
        for (int64_t i = 0; i < call->dim; i++) s.q[r * call->dim + i] = q[i] * call->scale;
    }
    return s;
}

// The first token that the token at `position` sees.
inline int64_t first_seen(const Attend* call, int64_t position) {
    return call->window && position >= call->window ? position + 1 - call->window : 0;
}

// Scores of a page to weights e^(score - maximum), zeros but from `from` to `seen`; what was mixed so far shrinks
// accordingly.
inline void weigh(const Queries& s, int64_t r, int64_t from, int64_t seen) {
    float* scores = s.scores + r * PAGE_TOKENS;
    float most = s.chunk.most[r];
    for (int64_t t = from; t < seen; t++) most = scores[t] > most ? scores[t] : most;
    for (int v = 0; v < PANELS; v++) store(scores + v * W, exponential(sub(load(scores + v * W), splat(most))));
    for (int64_t t = 0; t < from; t++) scores[t] = 0;
    for (int64_t t = seen; t < PAGE_TOKENS; t++) scores[t] = 0;
    F sums[PANELS];
    for (int v = 0; v < PANELS; v++) sums[v] = load(scores + v * W);
    float shrink[W];
    store(shrink, exponential(splat(s.chunk.most[r] - most)));
    s.chunk.total[r] = s.chunk.total[r] * shrink[0] + fold(sums);
    if (s.chunk.most[r] != most) {
        float* mixed = s.chunk.mixed + r * s.width;
        for (int64_t i = 0; i < s.width; i += W) store(mixed + i, mul(load(mixed + i), splat(shrink[0])));
    }
    s.chunk.most[r] = most;
}

// What a row found in the first chunk that it sees.
inline void take(const Queries& s, int64_t r) {
    s.all.most[r] = s.chunk.most[r];
    s.all.total[r] = s.chunk.total[r];
    std::memcpy(s.all.mixed + r * s.width, s.chunk.mixed + r * s.width, s.width * sizeof(float));
}

// Joins what a row found in a chunk to what it found before.
inline void join(const Queries& s, int64_t r) {
    const float before = s.all.most[r], now = s.chunk.most[r], most = now > before ? now : before;
    float factors[W] = {before - most, now - most};
    store(factors, exponential(load(factors)));
    const F kept = splat(factors[0]), taken = splat(factors[1]);
    float total[W];
    store(total, fma(splat(s.chunk.total[r]), taken, mul(splat(s.all.total[r]), kept)));
    s.all.total[r] = total[0];
    s.all.most[r] = most;
    const float* chunk = s.chunk.mixed + r * s.width;
    float* all = s.all.mixed + r * s.width;
    for (int64_t i = 0; i < s.width; i += W) {
        store(all + i, fma(load(chunk + i), taken, mul(load(all + i), kept)));
    }
}

inline void mix_page(const Attend* call, const Stretch* stretch, const Queries& s, int64_t number, int64_t at) {
    const int64_t group = call->heads / call->kv_heads, dim = s.dim;
    std::memset(s.scores, 0, s.rows * PAGE_TOKENS * sizeof(float));
    panels(s.q, dim, call->keys + at, PAGE_TOKENS, dim, s.scores, PAGE_TOKENS, s.rows);
    // The rows that see any of the page are neighbours.
    int64_t first = s.rows, end = 0, most_seen = 0;
    for (int64_t r = 0; r < s.rows; r++) {
        const int64_t position = stretch->begin + r / group, left = position + 1 - number * PAGE_TOKENS;
        const int64_t gone = first_seen(call, position) - number * PAGE_TOKENS;
        if (left <= 0 || gone >= PAGE_TOKENS) continue;
        const int64_t seen = left < PAGE_TOKENS ? left : PAGE_TOKENS;
        weigh(s, r, gone > 0 ? gone : 0, seen);
        first = r < first ? r : first;
        end = r + 1;
        most_seen = seen > most_seen ? seen : most_seen;
    }
    for (int64_t column = 0; column < dim; column += PAGE_TOKENS) {
        panels(s.scores + first * PAGE_TOKENS, PAGE_TOKENS, call->values + at + column, dim, most_seen,
               s.chunk.mixed + first * s.width + column, s.width, end - first);
    }
}

// Causal attention of a stretch's rows over one key-value head -> out.
void attend(const Attend* call, const Stretch* stretch, int64_t kv_head, float* scratch) {
    const Queries s = gather(call, stretch, kv_head, scratch);
    const int64_t group = call->heads / call->kv_heads;
    const int64_t pages = (stretch->begin + stretch->count + PAGE_TOKENS - 1) / PAGE_TOKENS;
    const int64_t seen = first_seen(call, stretch->begin) / PAGE_TOKENS, start = seen / CHUNK_PAGES * CHUNK_PAGES;
    for (int64_t first = start; first < pages; first += CHUNK_PAGES) {
        // The first chunk needs no joining: what its rows find goes to `all` at once.
        const Queries part = first > start ? s : Queries{s.rows, s.dim, s.width, s.q, s.scores, s.all, {}};
        begin(part.chunk, s.rows, s.width);
        const int64_t last = first + CHUNK_PAGES < pages ? first + CHUNK_PAGES : pages;
        for (int64_t number = first > seen ? first : seen; number < last; number++) {
            const int64_t page = call->pages[stretch->page + number];
            mix_page(call, stretch, part, number, page * call->page_stride + kv_head * s.dim * PAGE_TOKENS);
        }
        for (int64_t r = 0; first > start && r < s.rows; r++) {
            const int64_t position = stretch->begin + r / group;
            if (position < first * PAGE_TOKENS) continue;
            first_seen(call, position) < first * PAGE_TOKENS ? join(s, r) : take(s, r);
        }
    }
    for (int64_t r = 0; r < s.rows; r++) {
        float* out = call->out + ((stretch->first + r / group) * call->heads + kv_head * group + r % group) * s.dim;
        for (int64_t i = 0; i < s.dim; i++) out[i] = s.all.mixed[r * s.width + i] / s.all.total[r];
    }
}

}  // namespace
