// How does a processor speak a card's words? Threads are fibers: one runs until it waits for others.
//
// The same kernel sources as for a card (kernels/gpu), with the same words as words_cuda.h. What a warp does together is
// done by its last lane for all; what is fetched arrives when it is waited for, not before.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define WORD inline
#define CONSTANT constexpr
#define KERNEL(NAME, STRUCT, THREADS, BLOCKS)                                                                          \
    static void NAME##_of(const STRUCT& call);                                                                         \
    static void NAME##_thread(const void* call) { NAME##_of(*static_cast<const STRUCT*>(call)); }                      \
    extern "C" int NAME(const fibers::Launch* launch, const void* call) {                                              \
        return launch->threads > THREADS ? 1 : fibers::run(*launch, NAME##_thread, call);                              \
    }                                                                                                                  \
    static void NAME##_of(const STRUCT& call)
#define SHARED(TYPE, NAME, COUNT)                                                                                      \
    static TYPE NAME[COUNT];                                                                                           \
    static int64_t NAME##_blocks = 0;                                                                                  \
    fibers::spoil(NAME, sizeof NAME, NAME##_blocks)
#define SHARED_AS_LAUNCHED(NAME) uint8_t* NAME = fibers::memory()
#define UNROLL
#define UNROLL_BY(N)
#define NO_UNROLL

WORD int thread() { return fibers::now().thread; }
WORD int threads() { return fibers::launch().threads; }
WORD int blocks_x() { return fibers::launch().blocks[0]; }
WORD int block_x() { return fibers::block(0); }
WORD int block_y() { return fibers::block(1); }
WORD int block_z() { return fibers::block(2); }

struct alignas(8) Two {
    uint32_t x, y;
};
struct alignas(16) Four {
    uint32_t x, y, z, w;
};

// Compiled with -ffp-contract=off: each operation rounds once.
WORD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
WORD float mul(float a, float b) { return a * b; }
WORD float add(float a, float b) { return a + b; }
WORD float sub(float a, float b) { return a - b; }
WORD float divide(float a, float b) { return a / b; }
WORD float root(float x) { return __builtin_sqrtf(x); }
WORD float from_bits(uint32_t x) {
    float found;
    std::memcpy(&found, &x, sizeof found);
    return found;
}
WORD uint32_t bits(float x) {
    uint32_t found;
    std::memcpy(&found, &x, sizeof found);
    return found;
}
WORD float from_half(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, rest = half & 1023;
    if (exponent == 0) {
        const float found = static_cast<float>(rest) * 0x1p-24f;
        return sign ? -found : found;
    }
    return from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13);
}
// Rounded to nearest, ties to even: through a power of two that leaves as many bits as a half has.
WORD uint32_t to_half(float x) {
    const uint32_t raw = bits(x), sign = raw >> 16 & 0x8000u, magnitude = raw & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal, counted in 2^-24
        return sign | (bits(from_bits(magnitude) + 0.5f) - bits(0.5f));
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return sign | (rounded >= 0x47800000u ? 0x7c00u : (rounded - 0x38000000u) >> 13);
}

WORD uint32_t across(uint32_t x, int mask) {
    return fibers::together(x, [mask](const uint32_t* in, uint32_t* out) {
        for (int lane = 0; lane < 32; lane++) out[lane] = in[lane ^ mask];
    });
}
WORD float across(float x, int mask) { return from_bits(across(bits(x), mask)); }
WORD bool any_lane(bool x) {
    return fibers::together(static_cast<uint32_t>(x), [](const uint32_t* in, uint32_t* out) {
        uint32_t any = 0;
        for (int lane = 0; lane < 32; lane++) any |= in[lane];
        for (int lane = 0; lane < 32; lane++) out[lane] = any;
    }) != 0;
}
WORD void sync_warp() { any_lane(false); }
WORD void sync_block() { fibers::barrier(0, fibers::alive(), true); }
template <int> WORD void await_neighbour(int number) { fibers::barrier(number, 64, true); }
template <int> WORD void announce_to_neighbour(int number) { fibers::barrier(number, 64, false); }

WORD void fetch(void* to, const void* from) { fibers::now().fetch(to, from); }
WORD void seal() { fibers::now().seal(); }
template <int N> WORD void arrived() { fibers::now().arrived(N); }

WORD uint32_t pick(uint32_t low, uint32_t high, uint32_t selectors) {
    const uint64_t all = static_cast<uint64_t>(high) << 32 | low;
    uint32_t found = 0;
    for (int i = 0; i < 4; i++) found |= static_cast<uint32_t>(all >> 8 * (selectors >> 4 * i & 7) & 255) << 8 * i;
    return found;
}

// The operands of a warp's product: registers of a lane, as the instruction has them.
struct Operands {
    uint32_t a[4], b[2];
    int32_t start;
};
struct Sums {
    int32_t r[4];
};
template <bool SIGNED> WORD int32_t weight_of(uint32_t word, int i) {
    const uint32_t byte = word >> 8 * i & 255;
    return SIGNED ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte);
}
template <bool SIGNED, int HALVES> WORD void dots(const Operands* in, Sums* out) {
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            int32_t sum = in[lane].start;
            for (int k = 0; k < 16 * HALVES; k++) {
                const uint32_t a = in[row % 8 * 4 + k % 16 / 4].a[k / 16 * 2 + row / 8];
                const uint32_t b = in[column * 4 + k % 16 / 4].b[k / 16];
                sum += weight_of<SIGNED>(a, k % 4) * weight_of<true>(b, k % 4);
            }
            out[lane].r[i] = sum;
        }
    }
}
template <bool SIGNED> WORD void dot32(int32_t (&r)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int32_t start) {
    const Sums sums = fibers::together<Operands, Sums>({{a[0], a[1], a[2], a[3]}, {b0, b1}, start}, dots<SIGNED, 2>);
    std::memcpy(r, sums.r, sizeof sums.r);
}
template <bool SIGNED> WORD void dot16(int32_t (&r)[4], uint32_t a0, uint32_t a1, uint32_t b, int32_t start) {
    const Sums sums = fibers::together<Operands, Sums>({{a0, a1, 0, 0}, {b, 0}, start}, dots<SIGNED, 1>);
    std::memcpy(r, sums.r, sizeof sums.r);
}

WORD int32_t next_of(int32_t* at) { return (*at)++; }
WORD void lower_to(int32_t* at, int32_t value) { *at = value < *at ? value : *at; }
WORD double nearest(double x) { return std::nearbyint(x); }
WORD double below(double x) { return std::floor(x); }
