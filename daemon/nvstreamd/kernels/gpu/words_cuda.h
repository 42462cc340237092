// Which words does a kernel need from NVIDIA's hardware? All that names CUDA or PTX stands here; another maker's card,
// or a processor whose threads are fibers (tests/support/fibers), is another header with the same words.
//
// Floating-point words are the contract's operations (ARITHMETIC.md, section 1): each rounds once, nothing is fused.
// Instructions: PTX ISA 8.0, those that compute capability 8.0 has.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define WORD __device__ __forceinline__
#define CONSTANT __device__ constexpr
// A kernel, which takes `call`, of at most THREADS threads a block, BLOCKS of which a multiprocessor should hold.
#define KERNEL(NAME, STRUCT, THREADS, BLOCKS) \
    extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void NAME(const __grid_constant__ STRUCT call)
// The block's memory: an array of fixed size, or what the launch gives.
#define SHARED(TYPE, NAME, COUNT) __shared__ __align__(128) TYPE NAME[COUNT]
#define SHARED_AS_LAUNCHED(NAME) extern __shared__ __align__(128) uint8_t NAME[]
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(N) PRAGMA(unroll N)
#define PRAGMA(TEXT) _Pragma(#TEXT)
#define NO_UNROLL UNROLL_BY(1)

WORD int thread() { return static_cast<int>(threadIdx.x); }
WORD int threads() { return static_cast<int>(blockDim.x); }
WORD int blocks_x() { return static_cast<int>(gridDim.x); }
WORD int block_x() { return static_cast<int>(blockIdx.x); }
WORD int block_y() { return static_cast<int>(blockIdx.y); }
WORD int block_z() { return static_cast<int>(blockIdx.z); }

struct alignas(8) Two {
    uint32_t x, y;
};
struct alignas(16) Four {
    uint32_t x, y, z, w;
};

WORD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WORD float mul(float a, float b) { return __fmul_rn(a, b); }
WORD float add(float a, float b) { return __fadd_rn(a, b); }
WORD float sub(float a, float b) { return __fsub_rn(a, b); }
WORD float divide(float a, float b) { return __fdiv_rn(a, b); }
WORD float root(float x) { return __fsqrt_rn(x); }
WORD float from_bits(uint32_t x) { return __uint_as_float(x); }
WORD uint32_t bits(float x) { return __float_as_uint(x); }

WORD float from_half(uint32_t half) {
    float found;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(found) : "r"(half));
    return found;
}
WORD uint32_t to_half(float x) {
    uint32_t found;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.u32.u16 %0, h; }" : "=r"(found) : "f"(x));
    return found;
}

// What a warp gives each other: all 32 lanes take part.
WORD float across(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
WORD uint32_t across(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
WORD bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
WORD void sync_warp() { __syncwarp(); }
WORD void sync_block() { __syncthreads(); }
// Barrier `number`, 1 to WARPS, of two warps: one waits for what the other has announced. By numbers that the compiler
// knows, so that a block takes no more barriers than these: a multiprocessor has 64.
#define CASE(NUMBER, WORDS)                                                                                            \
    if (NUMBER <= WARPS && number == NUMBER) asm volatile(WORDS " " #NUMBER ", 64;" ::: "memory");
#define EACH_BARRIER(WORDS)                                                                                            \
    CASE(1, WORDS)                                                                                                     \
    CASE(2, WORDS)                                                                                                     \
    CASE(3, WORDS)                                                                                                     \
    CASE(4, WORDS)                                                                                                     \
    if constexpr (WARPS > 4) {                                                                                         \
        CASE(5, WORDS)                                                                                                 \
        CASE(6, WORDS)                                                                                                 \
        CASE(7, WORDS)                                                                                                 \
        CASE(8, WORDS)                                                                                                 \
    }
template <int WARPS> WORD void await_neighbour(int number) { EACH_BARRIER("bar.sync") }
template <int WARPS> WORD void announce_to_neighbour(int number) { EACH_BARRIER("bar.arrive") }

// 16 bytes on their way into the block's memory; `seal` ends a batch, `arrived<N>` waits until N batches are left.
WORD void fetch(void* to, const void* from) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
WORD void seal() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> WORD void arrived() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Bytes of `low` and `high` by four selectors of 4 bits, 0 to 7.
WORD uint32_t pick(uint32_t low, uint32_t high, uint32_t selectors) { return __byte_perm(low, high, selectors); }

// 16 rows of weights times 8 of activations, 32 or 16 columns: sums of products of bytes, begun with `start`. A warp's
// lanes hold the operands as mma.m16n8k32 and mma.m16n8k16 of .s32.s8.s8.s32 (or .u8) want them.
template <bool SIGNED>
WORD void dot32(int32_t (&r)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int32_t start) {
    if constexpr (SIGNED) {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%10,%10,%10};"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
    } else {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%10,%10,%10};"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
    }
}
template <bool SIGNED> WORD void dot16(int32_t (&r)[4], uint32_t a0, uint32_t a1, uint32_t b, int32_t start) {
    if constexpr (SIGNED) {
        asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%7,%7,%7};"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a0), "r"(a1), "r"(b), "r"(start));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%7,%7,%7};"
            : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a0), "r"(a1), "r"(b), "r"(start));
    }
}

// Counts on, and returns what was there.
WORD int32_t next_of(int32_t* at) { return atomicAdd(at, 1); }
WORD void lower_to(int32_t* at, int32_t value) { atomicMin(at, value); }
WORD double nearest(double x) { return rint(x); }
WORD double below(double x) { return floor(x); }
