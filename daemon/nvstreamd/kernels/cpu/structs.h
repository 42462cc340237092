// What passes between Python and the kernels? Written by scripts/build_kernels.py from cpu_structs.py.
#pragma once

#include <cstdint>

constexpr int32_t NV_ABI = 1321441571;
constexpr int MOST_MATRICES = 3;

enum Op : int64_t {
    PROJECT = 0,
    GATED = 1,
    ADD = 2,
    ATTEND = 3,
    SCORE = 4,
    ADD_NORMED = 5,
    ROUTE = 6,
    EXPERT = 7,
    MIX = 8,
};

enum CpuActivation : int64_t {
    SILU = 0,
    GELU = 1,
};

enum Base : int64_t {
    NONE = 0,
    WEIGHTS = 1,
    CONSTANTS = 2,
};

struct CpuTensor {
    int64_t base;
    int64_t offset;
    int64_t type;
};

struct CpuMatrix {
    CpuTensor data;
    CpuTensor bias;
    int64_t rows;
    int64_t out;
};

struct CpuStep {
    int64_t op;
    int64_t x;
    int64_t columns;
    CpuTensor norm;
    double epsilon;
    int64_t matrices;
    CpuMatrix matrix[3];
    int64_t first;
    int64_t q;
    int64_t k;
    int64_t v;
    int64_t out;
    CpuTensor q_norm;
    CpuTensor k_norm;
    int64_t heads;
    int64_t kv_heads;
    int64_t dim;
    int64_t interleaved;
    int64_t group;
    int64_t layer;
    int64_t rope;
    int64_t activation;
    int64_t window;
    double scale;
    int64_t used;
    int64_t weights;
};

struct CpuStretch {
    int64_t first;
    int64_t count;
    int64_t begin;
    int64_t page;
};

struct CpuGroup {
    uint64_t memory;
    int64_t page_bytes;
    uint64_t stretches;
    uint64_t pages;
};

struct CpuPass {
    int64_t rows;
    uint64_t values;
    uint64_t angles;
    uint64_t groups;
    int64_t stretch_count;
    uint64_t wanted;
    int64_t wanted_count;
    uint64_t scores;
    int64_t vocabulary;
    int64_t width;
    uint64_t constants;
    int64_t unsound;
    uint64_t routing;
};

struct CpuVisit {
    uint64_t step;
    uint64_t weights;
    uint64_t places;
    int64_t count;
};
