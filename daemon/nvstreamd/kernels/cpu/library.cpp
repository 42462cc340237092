// What can be called from Python? Plain functions over addresses; each returns 0, or what was wrong as a text.
//
// Work is cut into chunks of weight rows. Rows of activations are never split: all that pass by use a chunk while it is
// in the cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "pool.h"
#include "shapes.h"

extern const Kernels nv_portable;
#if defined(__x86_64__)
extern const Kernels nv_avx2, nv_avx512, nv_avx512_vnni;
#endif

namespace {

// The best first.
const Kernels* const KERNELS[] = {
#if defined(__x86_64__)
    &nv_avx512_vnni, &nv_avx512, &nv_avx2,
#endif
    &nv_portable,
};
constexpr int KERNEL_COUNT = sizeof KERNELS / sizeof *KERNELS;

// Rows of activations beyond a tile pass over a chunk again, which must still be in the cache then. Others see it once:
// longer chunks, since what is prefetched behind a chunk's end is another thread's.
constexpr int64_t CACHED_CHUNK_BYTES = 128 << 10, CHUNK_BYTES = 512 << 10;
constexpr int64_t CHUNKS_A_THREAD = 4;
constexpr int64_t CHUNK_ALIGNMENT = 16;
constexpr int64_t ALONE = 16 << 10;  // below so many elements waking helpers costs more than it saves

struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

// Memory that grows and is never smaller again.
template <class T> class Scratch {
public:
    T* at_least(size_t count) {
        if (count > capacity) {
            memory.reset();
            capacity = 0;
            memory.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
            capacity = count;
        }
        return memory.get();
    }
    T* get() const { return memory.get(); }

private:
    std::unique_ptr<T, Free> memory;
    size_t capacity = 0;
};

struct Context {
    const Kernels& kernels;
    Pool pool;
    std::mutex mutex;
    Scratch<float> normed;
    Scratch<Block> blocks;
    std::vector<Scratch<float>> own;
    std::vector<Span> spans;

    Context(const Kernels& k, int threads) : kernels(k), pool(threads), own(static_cast<size_t>(threads)) {}

    // Memory of its own for each thread, before they start: a job must not throw, others would still be at work.
    void give_each(size_t floats) {
        for (Scratch<float>& scratch : own) scratch.at_least(floats);
    }
};

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

const char* check(const Linear& call) {
    if (call.rows < 1 || call.columns < 1 || call.matrices < 1 || call.matrices > MOST_MATRICES) return "bad shape";
    if (call.mode == GATED && (call.matrices != 2 || call.matrix[0].rows != call.matrix[1].rows)) return "bad gate";
    for (int m = 0; m < call.matrices; m++) {
        if (!row_bytes(call.matrix[m].type, call.columns)) return "unknown type, or a row of broken blocks";
    }
    return nullptr;
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
        const float* x = call.x + i * call.columns;
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
    if (call.mode == STORE) return multiply(context, call, in, matrix, chunk, y, matrix.stride);
    float* own = context.own[static_cast<size_t>(thread)].get();
    if (call.mode == ADD) {
        multiply(context, call, in, matrix, chunk, own, chunk.count);
        for (int64_t r = 0; r < call.rows; r++) {
            for (int64_t i = 0; i < chunk.count; i++) y[r * matrix.stride + i] += own[r * chunk.count + i];
        }
        return;
    }
    multiply(context, call, in, matrix, chunk, y, matrix.stride);
    multiply(context, call, in, call.matrix[1], chunk, own, chunk.count);
    for (int64_t r = 0; r < call.rows; r++) {
        context.kernels.gate(y + r * matrix.stride, own + r * chunk.count, chunk.count);
    }
}

void linear(Context& context, const Linear& call) {
    const Prepared in = prepare(context, call);
    const auto chunks = cut(call, call.mode == GATED ? 1 : call.matrices, context.pool.threads());
    int64_t largest = 0;
    for (const Chunk& chunk : chunks) largest = std::max(largest, chunk.count);
    if (call.mode != STORE) context.give_each(static_cast<size_t>(call.rows * largest));
    context.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t item, int thread) {
        finish(context, call, in, chunks[static_cast<size_t>(item)], thread);
    });
}

// Spans cut to as many rows as share a key-value head's conversion.
void cut_spans(std::vector<Span>& out, const Attend& call) {
    const int64_t most = span_rows(call.heads / call.kv_heads);
    out.clear();
    for (int64_t i = 0; i < call.span_count; i++) {
        const Span& span = call.spans[i];
        for (int64_t done = 0; done < span.count; done += most) {
            out.push_back({span.first + done, std::min(most, span.count - done), span.begin + done, span.page});
        }
    }
}

void attend(Context& context, const Attend& call) {
    std::vector<Span>& spans = context.spans;
    cut_spans(spans, call);
    const int64_t count = static_cast<int64_t>(spans.size());
    context.pool.run(count, [&](int64_t item, int) {
        const Span& span = spans[static_cast<size_t>(item)];
        for (int64_t r = 0; r < span.count; r++) {
            const int64_t at = span.begin + r;
            context.kernels.place(&call, span.first + r, at % PAGE_TOKENS, call.pages[span.page + at / PAGE_TOKENS]);
        }
    });
    context.give_each(static_cast<size_t>(context.kernels.scratch(&call)));
    context.pool.run(count * call.kv_heads, [&](int64_t item, int thread) {
        float* scratch = context.own[static_cast<size_t>(thread)].get();
        context.kernels.attend(&call, &spans[static_cast<size_t>(item / call.kv_heads)], item % call.kv_heads, scratch);
    });
}

void step(Context& context, const Step& step, const Pass& pass) {
    if (!step.attends) {
        Linear call = step.linear;
        call.rows = pass.rows;
        return linear(context, call);
    }
    Attend call = step.attend;
    call.span_count = pass.span_count;
    call.spans = pass.spans;
    call.pages = pass.pages;
    call.cos = pass.cos;
    call.sin = pass.sin;
    attend(context, call);
}

template <class Work> const char* guarded(Context* context, const Work& work) {
    try {
        const std::lock_guard<std::mutex> lock(context->mutex);
        work();
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "out of memory";
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int32_t nv_abi() { return NV_ABI; }

int32_t nv_kernel_count() { return KERNEL_COUNT; }

const char* nv_kernel_name(int32_t kernel) { return KERNELS[kernel]->name; }

int32_t nv_kernel_usable(int32_t kernel) { return KERNELS[kernel]->usable(); }

Context* nv_open(int32_t kernel, int32_t threads) {
    try {
        return new Context(*KERNELS[kernel], threads);
    } catch (...) {
        return nullptr;
    }
}

void nv_close(Context* context) { delete context; }

const char* nv_linear(Context* context, const Linear* call) {
    if (const char* wrong = check(*call)) return wrong;
    return guarded(context, [&] { linear(*context, *call); });
}

// The steps of a layer, one after the other, over the rows of a pass.
const char* nv_run(Context* context, const Step* steps, int64_t count, const Pass* pass) {
    for (int64_t i = 0; i < count; i++) {
        if (steps[i].attends) continue;
        Linear linear = steps[i].linear;
        linear.rows = pass->rows;
        if (const char* wrong = check(linear)) return wrong;
    }
    return guarded(context, [&] {
        for (int64_t i = 0; i < count; i++) step(*context, steps[i], *pass);
    });
}

void nv_norm(Context* context, const float* x, const float* weight, int64_t rows, int64_t columns, float epsilon,
             float* y) {
    for (int64_t i = 0; i < rows * columns; i += columns) context->kernels.norm(x + i, weight, columns, epsilon, y + i);
}

// Whether no element is NaN or infinite.
int32_t nv_finite(const float* x, int64_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(x);
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t raw;
        std::memcpy(&raw, bytes + 4 * i, sizeof raw);
        bad |= (raw & 0x7f800000) == 0x7f800000;
    }
    return bad == 0;
}

// Reads all bytes with all threads, in pieces; the result only keeps the loads alive.
float nv_read(Context* context, const uint8_t* data, int64_t bytes) {
    constexpr int64_t piece = 1 << 20;
    std::vector<float> found(static_cast<size_t>(context->pool.threads()));
    context->pool.run((bytes + piece - 1) / piece, [&](int64_t item, int thread) {
        found[static_cast<size_t>(thread)] +=
            context->kernels.read(data + item * piece, std::min(piece, bytes - item * piece));
    });
    return found[0];
}

}  // extern "C"
#pragma GCC visibility pop
