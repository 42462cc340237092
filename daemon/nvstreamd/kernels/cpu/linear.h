// How are products cut over threads? Into chunks of weight rows. Rows of activations are never split: all that pass by
// use a chunk while it is in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "context.h"

namespace {

// Rows of activations beyond a tile pass over a chunk again, which must still be in the cache then. Others see it once:
// longer chunks, since what is prefetched behind a chunk's end is another thread's.
constexpr int64_t CACHED_CHUNK_BYTES = 128 << 10, CHUNK_BYTES = 512 << 10;
constexpr int64_t CHUNKS_A_THREAD = 4;
constexpr int64_t CHUNK_ALIGNMENT = 16;
constexpr int64_t ALONE = 16 << 10;  // below so many elements waking helpers costs more than it saves

// A range of rows of one matrix.
struct Chunk {
    int matrix;
    int64_t begin, count;
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

std::vector<Chunk> cut(const Linear& call, int64_t matrices, int threads) {
    std::vector<Chunk> chunks;
    for (int m = 0; m < matrices; m++) {
        const Matrix& matrix = call.matrix[m];
        const int64_t fair = matrix.rows / (CHUNKS_A_THREAD * threads) + 1;
        const int64_t longest = call.rows > TILE ? CACHED_CHUNK_BYTES : CHUNK_BYTES;
        const int64_t most = longest / row_bytes(matrix.type, call.columns) + 1;
        const int64_t step = round_up(std::min(fair, most), CHUNK_ALIGNMENT);
        for (int64_t begin = 0; begin < matrix.rows; begin += step) {
            chunks.push_back({m, begin, std::min(step, matrix.rows - begin)});
        }
    }
    return chunks;
}

// The activations in the forms that the matrices want.
struct Prepared {
    const float* x;
    const Block* blocks;
};

Prepared prepare(Context& context, const Linear& call) {
    bool integers = false;
    for (int m = 0; m < call.matrices; m++) integers |= !is_float(call.matrix[m].type);
    const size_t size = static_cast<size_t>(call.rows * call.columns);
    float* normed = call.norm ? context.normed.at_least(size) : nullptr;
    Block* blocks = integers ? context.blocks.at_least(size / BLOCK) : nullptr;
    const auto row = [&](int64_t i, int) {
        const float* x = call.x + (call.picked ? call.picked[i] : i) * call.columns;
        if (normed) {
            context.kernels.norm(x, call.norm, call.columns, call.epsilon, normed + i * call.columns);
            x = normed + i * call.columns;
        }
        if (blocks) context.kernels.quantise(x, i, call.rows, call.columns, blocks);
    };
    if (call.rows * call.columns < ALONE) {
        for (int64_t i = 0; i < call.rows; i++) row(i, 0);
    } else if (normed || blocks) {
        context.pool.run(call.rows, row);
    }
    return {normed ? normed : call.x, blocks};
}

void multiply(const Context& context, const Linear& call, const Prepared& in, const Matrix& matrix, const Chunk& chunk,
              float* y, int64_t stride) {
    const uint8_t* data = matrix.data + chunk.begin * row_bytes(matrix.type, call.columns);
    context.kernels.product[matrix.type](data, chunk.count, call.columns, in.x, in.blocks, call.rows, y, stride);
    if (!matrix.bias) return;
    for (int64_t r = 0; r < call.rows; r++) {
        for (int64_t i = 0; i < chunk.count; i++) y[r * stride + i] += matrix.bias[chunk.begin + i];
    }
}

void finish(Context& context, const Linear& call, const Prepared& in, const Chunk& chunk, int thread) {
    const Matrix& matrix = call.matrix[chunk.matrix];
    float* y = matrix.y + chunk.begin;
    if (call.mode == Mode::STORE) return multiply(context, call, in, matrix, chunk, y, matrix.stride);
    float* own = context.own[static_cast<size_t>(thread)].get();
    if (call.mode == Mode::ADD) {
        multiply(context, call, in, matrix, chunk, own, chunk.count);
        for (int64_t r = 0; r < call.rows; r++) {
            for (int64_t i = 0; i < chunk.count; i++) y[r * matrix.stride + i] += own[r * chunk.count + i];
        }
        return;
    }
    multiply(context, call, in, matrix, chunk, y, matrix.stride);
    multiply(context, call, in, call.matrix[1], chunk, own, chunk.count);
    for (int64_t r = 0; r < call.rows; r++) {
        context.kernels.gate[call.activation](y + r * matrix.stride, own + r * chunk.count, chunk.count);
    }
}

void linear(Context& context, const Linear& call) {
    const Prepared in = prepare(context, call);
    const auto chunks = cut(call, call.mode == Mode::GATED ? 1 : call.matrices, context.pool.threads());
    int64_t largest = 0;
    for (const Chunk& chunk : chunks) largest = std::max(largest, chunk.count);
    if (call.mode != Mode::STORE) context.give_each(static_cast<size_t>(call.rows * largest));
    context.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t item, int thread) {
        finish(context, call, in, chunks[static_cast<size_t>(item)], thread);
    });
}

}  // namespace
