// What passes between Python, the dispatcher and the kernels of one instruction set?
//
// Plain structures of fixed-size fields: Python fills them with struct.pack (kernels/native.py); NV_ABI counts their
// versions.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int32_t NV_ABI = 1;

// Ids of the GGUF specification's ggml_type table.
enum Type : int32_t {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12,
    Q5_K = 13, Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39, TYPE_COUNT = 40,
};

// Bytes of a row of weights; 0 for an unknown type or when the row is no whole number of blocks.
inline int64_t row_bytes(int64_t type, int64_t columns) {
    struct Size {
        int16_t length, bytes;
    };
    constexpr Size sizes[TYPE_COUNT] = {
        {1, 4},     {1, 2},     {32, 18},   {32, 20},   {},       {},        {32, 22}, {32, 24},   {32, 34}, {},
        {256, 84},  {256, 110}, {256, 144}, {256, 176}, {256, 210}, {},      {},       {},         {},       {},
        {32, 18},   {},         {},         {256, 136}, {},       {},        {},       {},         {},       {},
        {1, 2},     {},         {},         {},         {},       {},        {},       {},         {},       {32, 17},
    };
    if (type < 0 || type >= TYPE_COUNT || !sizes[type].length || columns % sizes[type].length) return 0;
    return columns / sizes[type].length * sizes[type].bytes;
}

inline bool is_float(int64_t type) { return type == F32 || type == F16 || type == BF16; }

// What to do with the products of a Linear.
enum Mode : int32_t {
    STORE = 0,  // y[i] = x * weight[i] + bias[i]
    ADD = 1,    // y[i] += x * weight[i] + bias[i]
    GATED = 2,  // y[0] = silu(x * weight[0]) * (x * weight[1])
};

constexpr int MOST_MATRICES = 3;

// Weights [rows, columns] as GGUF lays them out; y [activation rows, rows] float32, rows `stride` floats apart; bias
// [rows] or null.
struct Matrix {
    const uint8_t* data;
    int64_t rows;
    int64_t type;
    float* y;
    int64_t stride;
    const float* bias;
};

// One or several products that share their activations x [rows, columns] float32. With `norm` [columns], x goes through
// RMSNorm first: x / sqrt(mean(x^2) + epsilon) * norm.
struct Linear {
    const float* x;
    const float* norm;
    int64_t rows;
    int64_t columns;
    float epsilon;
    int32_t mode;
    int64_t matrices;
    Matrix matrix[MOST_MATRICES];
};

// Rows `first` to `first + count` of a batch: tokens `begin` on of a sequence whose pages are pages[page] on.
struct Span {
    int64_t first;
    int64_t count;
    int64_t begin;
    int64_t page;
};

constexpr int PAGE_TOKENS = 32;

// Attention of one layer. q [rows, heads, dim] and k, v [rows, kv_heads, dim] float32; out [rows, heads, dim].
// keys [pages, kv_heads, dim, PAGE_TOKENS] and values [pages, kv_heads, PAGE_TOKENS, dim] float16.
// q and k are normed per head where q_norm, k_norm [dim] are not null, and turned by cos, sin [rows, dim / 2].
struct Attend {
    float* q;
    float* k;
    const float* v;
    float* out;
    uint16_t* keys;
    uint16_t* values;
    const Span* spans;
    const int64_t* pages;
    const float* cos;
    const float* sin;
    const float* q_norm;
    const float* k_norm;
    int64_t span_count;
    int64_t heads;
    int64_t kv_heads;
    int64_t dim;
    float epsilon;
    int32_t interleaved;
};

// 32 activations as the integer kernels want them: x = d * q. Sums are kept so that a weight's offset or minimum costs
// one operation a block.
struct alignas(64) Block {
    int8_t q[32];
    float d;
    float scaled[3];    // d * whole[0], d * whole[1], d * (both)
    int32_t whole[3];   // sums of q[0..15], q[16..31], of both
    int32_t unused;
};

constexpr int BLOCK = 32;
// Rows of activations that pass by while a group of weights is unpacked: their blocks stay in the L2 cache.
constexpr int TILE = 32;

// Blocks of rows lie tile by tile, and in a tile block by block: the rows of a tile are neighbours.
inline size_t block_index(int64_t row, int64_t block, int64_t rows, int64_t blocks) {
    const int64_t tile = row / TILE * TILE;
    const int64_t width = rows - tile < TILE ? rows - tile : TILE;
    return static_cast<size_t>(tile * blocks + block * width + (row - tile));
}

// The kernels of one instruction set; every function works on one thread.
struct Kernels {
    const char* name;
    bool (*usable)();
    int lanes;
    // `count` rows of weights times all rows of activations -> y [rows, count], rows `stride` apart. One of the two
    // forms of the activations is used: blocks for integer types, x [rows, columns] for floating-point types.
    void (*product[TYPE_COUNT])(const uint8_t* data, int64_t count, int64_t columns, const float* x,
                                const Block* blocks, int64_t rows, float* y, int64_t stride);
    void (*quantise)(const float* x, int64_t row, int64_t rows, int64_t columns, Block* blocks);
    void (*norm)(const float* x, const float* weight, int64_t columns, float epsilon, float* y);
    void (*gate)(float* gate, const float* up, int64_t count);  // gate = silu(gate) * up
    void (*place)(const Attend* call, int64_t row, int64_t token, int64_t page);
    void (*attend)(const Attend* call, const Span* span, int64_t kv_head, float* scratch);
    int64_t (*scratch)(const Attend* call);  // floats that `attend` needs
    float (*read)(const uint8_t* data, int64_t bytes);
};

// Query rows of one sequence that share the conversion of its keys and values.
inline int64_t span_rows(int64_t group) { return group >= 12 ? 1 : 12 / group; }
