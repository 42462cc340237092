// How do queries meet the pages of their sequence? ARITHMETIC.md, section 5: a warp has a page, a block a chunk of 8.
//
// A block takes up to N queries: heads of one key-value head, of neighbouring rows of a stretch. Few rows have a block
// a chunk, and what those found is joined afterwards; many rows have one block for all chunks, in order.
#pragma once

constexpr int CHUNK_PAGES = 8, CHUNK = PAGE_TOKENS * CHUNK_PAGES;

// What N queries of a block are, and what they found in a chunk, page by page, and in all chunks so far.
template <int N> struct Found {
    int row[N], head[N], last[N], first[N];  // of a query: its row, its head, the tokens that it sees
    float q[MOST_DIM][N], weight[CHUNK][N], all[N][MOST_DIM];
    float most[N][CHUNK_PAGES], sum[N][CHUNK_PAGES], shrink[N][CHUNK_PAGES];
    bool seen[N][CHUNK_PAGES], rose[N][CHUNK_PAGES];
    float total[N], top[N], all_total[N], all_top[N], kept[N], taken[N];
};

// Queries `begin` to `begin + count` of a stretch's rows times the heads of a key-value head.
template <int N> struct Attention {
    static constexpr int OWN = 4;  // queries whose column a thread mixes at a time
    const GpuAttend& call;
    const GpuStretch& stretch;
    int64_t kv_head, begin;
    int count, dim;
    Found<N>& found;

    // The tokens that any of the queries sees: rows are in ascending order.
    WORD int first_token() const { return found.first[0]; }
    WORD int last_token() const { return found.last[count - 1]; }
    WORD int first_chunk() const { return first_token() / CHUNK; }
    WORD int chunks() const { return last_token() / CHUNK + 1; }
    WORD bool sees(int n, int chunk) const {
        return n < count && found.last[n] >= chunk * CHUNK && found.first[n] < (chunk + 1) * CHUNK;
    }
    WORD const uint16_t* keys(int page) const {
        return page_of(call, stretch, page) + kv_head * dim * PAGE_TOKENS;
    }
    WORD const uint16_t* values(int page) const { return keys(page) + call.kv_heads * dim * PAGE_TOKENS; }

    // Who the queries are; the first thing that is done, since everything else asks.
    WORD void meet() const {
        if (thread() < N) {
            const int n = thread(), group = static_cast<int>(call.heads / call.kv_heads);
            const int query = static_cast<int>(begin) + (n < count ? n : count - 1);
            const int position = static_cast<int>(stretch.begin) + query / group;
            const int gone = position + 1 - static_cast<int>(call.window);
            found.row[n] = static_cast<int>(stretch.first) + query / group;
            found.head[n] = static_cast<int>(kv_head) * group + query % group;
            found.last[n] = position;
            found.first[n] = call.window && gone > 0 ? gone : 0;
        }
        sync_block();
    }
    WORD int64_t at(int n) const { return (found.row[n] * call.heads + found.head[n]) * dim; }

    WORD void gather() const {
        const float scale = static_cast<float>(call.scale);
        UNROLL
        for (int n = 0; n < N; n++) {
            const float* x = reinterpret_cast<const float*>(call.q) + at(n);
            for (int i = thread(); i < dim; i += CHUNK) found.q[i][n] = n < count ? mul(x[i], scale) : 0.0f;
        }
        sync_block();
    }
    // Weights of a chunk's tokens: a warp has a page, a lane a token.
    WORD void weigh(int chunk) const {
        const int warp = thread() / 32, lane = thread() % 32;
        const int page = chunk * CHUNK_PAGES + warp, token = page * PAGE_TOKENS + lane;
        float score[N] = {};
        if (page * PAGE_TOKENS <= last_token()) {
            const uint16_t* key = keys(page) + lane;
            // So many loads at once: a page takes as long as its way from memory.
            UNROLL_BY(32)
            for (int i = 0; i < dim; i++) {
                const float k = from_half(key[i * PAGE_TOKENS]);
                UNROLL
                for (int n = 0; n < N; n++) score[n] = fma(found.q[i][n], k, score[n]);
            }
        }
        bool seen[N];
        UNROLL
        for (int n = 0; n < N; n++) {
            seen[n] = n < count && token <= found.last[n] && token >= found.first[n];
            // Nothing is less than a NaN, and a NaN is the larger of nothing.
            float most = seen[n] && score[n] == score[n] ? score[n] : -INFINITE;
            UNROLL
            for (int mask = 16; mask > 0; mask /= 2) {
                const float other = across(most, mask);
                most = other > most ? other : most;
            }
            const bool any = any_lane(seen[n]);
            if (lane == 0) {
                found.most[n][warp] = most;
                found.seen[n][warp] = any;
            }
        }
        sync_block();
        UNROLL
        for (int n = 0; n < N; n++) {
            float before = -INFINITE, now = -INFINITE;
            for (int p = 0; p <= warp; p++) {
                before = now;
                if (found.seen[n][p]) now = found.most[n][p] > now ? found.most[n][p] : now;
            }
            const float weight = seen[n] ? exponential(sub(score[n], now)) : 0.0f, sum = fold(weight);
            found.weight[thread()][n] = weight;
            if (lane == 0) {
                found.sum[n][warp] = sum;
                found.shrink[n][warp] = exponential(sub(before, now));
                found.rose[n][warp] = found.seen[n][warp] && before != now;
                if (warp == CHUNK_PAGES - 1) found.top[n] = now;
            }
        }
        sync_block();
        if (thread() < N) {
            const int n = thread();
            float total = 0.0f;
            for (int p = 0; p < CHUNK_PAGES; p++) {
                if (found.seen[n][p]) total = add(mul(total, found.shrink[n][p]), found.sum[n][p]);
            }
            found.total[n] = total;
        }
    }
    WORD void load(int page, int i, uint16_t (&v)[PAGE_TOKENS]) const {
        const uint16_t* value = values(page) + i;
        UNROLL
        for (int t = 0; t < PAGE_TOKENS; t++) v[t] = value[t * dim];
    }
    // What queries `from` on mix of the chunk in column i. A page comes while the one before it is mixed.
    WORD void mix(int chunk, int from, int i, float (&x)[OWN]) const {
        const int begin_page = chunk * CHUNK_PAGES, seen_page = first_token() / PAGE_TOKENS;
        const int last = last_token() / PAGE_TOKENS, end_page = begin_page + CHUNK_PAGES;
        const int first = begin_page > seen_page ? begin_page : seen_page, end = last < end_page ? last + 1 : end_page;
        uint16_t now[PAGE_TOKENS], next[PAGE_TOKENS];
        UNROLL
        for (int k = 0; k < OWN; k++) x[k] = 0.0f;
        if (first < end) load(first, i, now);
        for (int page = first; page < end; page++) {
            if (page + 1 < end) load(page + 1, i, next);
            UNROLL
            for (int k = 0; k < OWN; k++) {
                const int p = page - begin_page;
                if (found.rose[from + k][p]) x[k] = mul(x[k], found.shrink[from + k][p]);
            }
            // What nobody sees does not exist: its bytes may be another's.
            const int least = first_token() - page * PAGE_TOKENS, most = last_token() - page * PAGE_TOKENS;
            const float(*weight)[N] = found.weight + (page - begin_page) * PAGE_TOKENS;
            UNROLL
            for (int t = 0; t < PAGE_TOKENS; t++) {
                if (t < least || t > most) continue;
                const float v = from_half(now[t]);
                UNROLL
                for (int k = 0; k < OWN; k++) x[k] = fma(weight[t][from + k], v, x[k]);
            }
            UNROLL
            for (int t = 0; t < PAGE_TOKENS; t++) now[t] = next[t];
        }
    }
    // Joins `top`, `total` and `x` of the chunk to what query n found before, or takes them where there was nothing.
    WORD void weigh_join(int n, int chunk) const {
        if (!sees(n, chunk)) return;
        if (found.first[n] >= chunk * CHUNK) {
            found.all_top[n] = found.top[n];
            found.all_total[n] = found.total[n];
            return;
        }
        const float before = found.all_top[n], now = found.top[n], most = now > before ? now : before;
        found.kept[n] = exponential(sub(before, most));
        found.taken[n] = exponential(sub(now, most));
        found.all_total[n] = fma(found.total[n], found.taken[n], mul(found.all_total[n], found.kept[n]));
        found.all_top[n] = most;
    }
    WORD void join(int n, int chunk, int i, float x) const {
        if (!sees(n, chunk)) return;
        float& all = found.all[n][i];
        all = found.first[n] >= chunk * CHUNK ? x : fma(x, found.taken[n], mul(all, found.kept[n]));
    }
    WORD void finish() const {
        sync_block();
        for (int n = 0; n < count; n++) {
            float* out = reinterpret_cast<float*>(call.out) + at(n);
            for (int i = thread(); i < dim; i += CHUNK) {
                const float value = divide(found.all[n][i], found.all_total[n]);
                out[i] = value;
                const int64_t block = (static_cast<int64_t>(found.head[n]) * dim + i) / 32;
                if (call.quantised.q) quantise(call.quantised, found.row[n], block, value, thread() % 32);
            }
        }
    }
    // Every (queries, column) of a thread.
    template <class Each> WORD void columns(Each each) const {
        const int beside = CHUNK / dim, mine = thread() / dim;
        if (mine >= beside) return;
        for (int from = mine * OWN; from < N; from += beside * OWN) each(from, thread() % dim);
    }
    // All chunks, in order, by one block.
    WORD void through() const {
        gather();
        for (int chunk = first_chunk(); chunk < chunks(); chunk++) {
            weigh(chunk);
            if (thread() < N) weigh_join(thread(), chunk);
            sync_block();
            columns([&](int from, int i) {
                float x[OWN];
                mix(chunk, from, i, x);
                UNROLL
                for (int k = 0; k < OWN; k++) join(from + k, chunk, i, x[k]);
            });
            sync_block();
        }
        finish();
    }
    // Where a chunk's part lies meanwhile: `dim` numbers for each query, then its top and its total.
    WORD float* part(int chunk, int n) const {
        const int64_t number = (static_cast<int64_t>(block_z()) * call.kv_heads + kv_head) * call.most_chunks + chunk -
                               first_chunk();
        return reinterpret_cast<float*>(call.parts) + (number * N + n) * (dim + 2);
    }
    WORD void one_chunk(int chunk) const {
        gather();
        weigh(chunk);
        sync_block();
        columns([&](int from, int i) {
            float x[OWN];
            mix(chunk, from, i, x);
            UNROLL
            for (int k = 0; k < OWN; k++) part(chunk, from + k)[i] = x[k];
        });
        if (thread() < N) {
            part(chunk, thread())[dim] = found.top[thread()];
            part(chunk, thread())[dim + 1] = found.total[thread()];
        }
    }
    WORD void joined() const {
        for (int chunk = first_chunk(); chunk < chunks(); chunk++) {
            if (thread() < N) {
                found.top[thread()] = part(chunk, thread())[dim];
                found.total[thread()] = part(chunk, thread())[dim + 1];
                weigh_join(thread(), chunk);
            }
            sync_block();
            columns([&](int from, int i) {
                UNROLL
                for (int k = 0; k < OWN; k++) join(from + k, chunk, i, part(chunk, from + k)[i]);
            });
            sync_block();
        }
        finish();
    }
};

// The block's queries: by the table of `tiles`, each a stretch and its first query. Blocks: (chunks or 1, key-value
// heads, tiles).
template <int N> WORD Attention<N> attention(const GpuAttend& call, Found<N>& found) {
    const GpuQueries& tile = reinterpret_cast<const GpuQueries*>(call.tiles)[block_z()];
    const GpuStretch& stretch = stretch_of(call, tile.stretch);
    const int64_t left = stretch.count * (call.heads / call.kv_heads) - tile.first;
    const Attention<N> of{call, stretch, block_y(), tile.first, static_cast<int>(left < N ? left : N),
                          static_cast<int>(call.dim), found};
    of.meet();
    return of;
}
