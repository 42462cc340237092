// What do the experts of a layer compute, each over the rows that were sent to it? All that are at hand in one go, so
// that all threads have work though a row's part is small.
#pragma once

#include <cstring>
#include <vector>

#include "linear.h"

namespace {

// One expert's rows: pairs `first` to `first + count` of all pairs of a row and an expert that are computed together.
struct Visit {
    const CpuStep& step;
    const uint8_t* weights;
    const int64_t* places;
    int64_t count, first;

    const uint8_t* data(int m) const { return weights + step.matrix[m].data.offset; }
    int64_t type(int m) const { return step.matrix[m].data.type; }
    int64_t inner() const { return step.matrix[0].rows; }
};

struct Visits {
    std::vector<Visit> all;
    std::vector<int32_t> owner;  // of each pair, the number of its visit

    int64_t pairs() const { return static_cast<int64_t>(owner.size()); }
};

// Rows `begin` to `begin + count` of a visit's matrix.
struct VisitChunk {
    int32_t visit;
    int64_t begin, count;
};

Visits gather(const CpuVisit* visits, int64_t count) {
    Visits found;
    int64_t first = 0;
    for (int64_t i = 0; i < count; i++) {
        found.all.push_back({*reinterpret_cast<const CpuStep*>(visits[i].step),
                             reinterpret_cast<const uint8_t*>(visits[i].weights),
                             reinterpret_cast<const int64_t*>(visits[i].places), visits[i].count, first});
        found.owner.insert(found.owner.end(), static_cast<size_t>(visits[i].count), static_cast<int32_t>(i));
        first += visits[i].count;
    }
    return found;
}

// Matrix m of all visits in pieces that are alike in work: rows of weights times the rows that they serve.
std::vector<VisitChunk> cut(const Visits& visits, int m, int64_t columns, int threads) {
    int64_t work = 0;
    for (const Visit& visit : visits.all) work += visit.step.matrix[m].rows * visit.count;
    std::vector<VisitChunk> chunks;
    for (size_t v = 0; v < visits.all.size(); v++) {
        const Visit& visit = visits.all[v];
        const int64_t rows = visit.step.matrix[m].rows, fair = work / (CHUNKS_A_THREAD * threads) / visit.count + 1;
        const int64_t longest = visit.count > TILE ? CACHED_CHUNK_BYTES : CHUNK_BYTES;
        const int64_t most = longest / row_bytes(visit.type(m), columns) + 1;
        const int64_t step = round_up(std::min(fair, most), CHUNK_ALIGNMENT);
        for (int64_t begin = 0; begin < rows; begin += step) {
            chunks.push_back({static_cast<int32_t>(v), begin, std::min(step, rows - begin)});
        }
    }
    return chunks;
}

// The experts of one call at work.
struct ExpertsAtWork {
    Context& context;
    const Visits visits;
    const float* h;
    float* parts;
    int64_t columns, inner, used;
    float* rows = nullptr;    // [pairs, columns]: those of h, for weights that are floating-point numbers
    float* gated = nullptr;   // [pairs, inner]
    Block* blocks = nullptr;  // of either

    void run() {
        const size_t pairs = static_cast<size_t>(visits.pairs());
        blocks = context.blocks.at_least(pairs * static_cast<size_t>(std::max(columns, inner)) / BLOCK);
        gated = context.gated.at_least(pairs * static_cast<size_t>(inner));
        const Visit& any = visits.all.front();
        const bool whole = !is_float(any.type(0)) && !is_float(any.type(1));
        rows = whole ? nullptr : context.normed.at_least(pairs * static_cast<size_t>(columns));
        each_pair(columns, [&](const Visit& visit, int64_t i) {
            const float* x = h + visit.places[i] / used * columns;
            if (rows) std::memcpy(rows + (visit.first + i) * columns, x, static_cast<size_t>(columns) * sizeof *x);
            if (!is_float(visit.type(0)) || !is_float(visit.type(1))) quantise(visit, i, columns, x);
        });
        each_chunk(0, columns, [&](const Visit& visit, const VisitChunk& chunk, float* own) {
            float* y = gated + visit.first * inner + chunk.begin;
            multiply(visit, 0, chunk, columns, rows, y, inner);
            multiply(visit, 1, chunk, columns, rows, own, chunk.count);
            for (int64_t r = 0; r < visit.count; r++) {
                context.kernels.gate[visit.step.activation](y + r * inner, own + r * chunk.count, chunk.count);
            }
        });
        each_pair(inner, [&](const Visit& visit, int64_t i) {
            if (!is_float(visit.type(2))) quantise(visit, i, inner, gated + (visit.first + i) * inner);
        });
        each_chunk(2, inner, [&](const Visit& visit, const VisitChunk& chunk, float* own) {
            multiply(visit, 2, chunk, inner, gated, own, chunk.count);
            for (int64_t r = 0; r < visit.count; r++) {
                std::memcpy(parts + visit.places[r] * columns + chunk.begin, own + r * chunk.count,
                            static_cast<size_t>(chunk.count) * sizeof *own);
            }
        });
    }

    void quantise(const Visit& visit, int64_t i, int64_t length, const float* x) const {
        context.kernels.quantise(x, i, visit.count, length, blocks + visit.first * (length / BLOCK));
    }

    void multiply(const Visit& visit, int m, const VisitChunk& chunk, int64_t length, const float* x, float* y,
                  int64_t stride) const {
        const uint8_t* data = visit.data(m) + chunk.begin * row_bytes(visit.type(m), length);
        context.kernels.product[visit.type(m)](data, chunk.count, length, x ? x + visit.first * length : nullptr,
                                               blocks + visit.first * (length / BLOCK), visit.count, y, stride);
    }

    template <class Work> void each_pair(int64_t length, const Work& work) {
        const auto one = [&](int64_t pair, int) {
            const Visit& visit = visits.all[static_cast<size_t>(visits.owner[static_cast<size_t>(pair)])];
            work(visit, pair - visit.first);
        };
        if (visits.pairs() * length >= ALONE) return context.pool.run(visits.pairs(), one);
        for (int64_t pair = 0; pair < visits.pairs(); pair++) one(pair, 0);
    }

    template <class Work> void each_chunk(int m, int64_t length, const Work& work) {
        const auto chunks = cut(visits, m, length, context.pool.threads());
        int64_t largest = 0;
        for (const VisitChunk& chunk : chunks) {
            largest = std::max(largest, chunk.count * visits.all[static_cast<size_t>(chunk.visit)].count);
        }
        context.give_each(static_cast<size_t>(largest));
        context.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t item, int thread) {
            const VisitChunk& chunk = chunks[static_cast<size_t>(item)];
            work(visits.all[static_cast<size_t>(chunk.visit)], chunk, context.own[static_cast<size_t>(thread)].get());
        });
    }
};

}  // namespace
