// How does a card read GGUF's blocks? By cpu/blocks.h, the one source of their layout, over words for one row.
//
// A scale is not multiplied here: its factors are kept apart, to be stored as small as the file has them. Levels of the
// non-linear types stay numbers of levels.
#pragma once

namespace gguf {

constexpr int W = 1;
typedef uint32_t V;

// d times an integer, or a number alone: of a half, or of the upper half of a float (MXFP4's power of two).
struct F {
    uint32_t half;
    int32_t factor;
};

inline V splat8(int x) { return 0x01010101u * static_cast<uint32_t>(x); }
inline V splat32(int x) { return static_cast<uint32_t>(x); }
inline V both(V a, V b) { return a & b; }
inline V either(V a, V b) { return a | b; }
inline V sub32(V a, V b) { return a - b; }
template <int N> inline V left(V x) { return N < 32 ? x << N % 32 : 0; }
template <int N> inline V right(V x) { return N < 32 ? x >> N % 32 : 0; }
template <int N> inline V right_signed(V x) { return static_cast<V>(static_cast<int32_t>(x) >> N); }
inline V if_greater(V a, V b, V then, V otherwise) {
    return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? then : otherwise;
}
template <class Levels> inline V lookup(const Levels&, V numbers) { return numbers; }

inline F zero() { return {0, 0}; }
inline F low_half(V x) { return {x & 0xffffu, 0}; }
inline F to_float(V x) { return {0, static_cast<int32_t>(x)}; }
inline F mul(F d, F integer) { return {d.half, integer.factor}; }
inline F sub(F, F x) { return x; }  // 0 - x: the sign is the reader's (Packing::NEGATIVE)
inline F from_bits(V x) { return {x >> 16, 0}; }

// Four bytes anywhere. No word is read that holds none of them.
inline V rows4(const uint8_t* at, size_t) {
    const uint32_t* word = reinterpret_cast<const uint32_t*>(reinterpret_cast<size_t>(at) & ~size_t{3});
    const uint32_t shift = static_cast<uint32_t>(reinterpret_cast<size_t>(at) & 3) * 8;
    return shift ? word[0] >> shift | word[1] << (32 - shift) : word[0];
}
inline void rows16(const uint8_t* at, size_t stride, V* out) {
    for (int i = 0; i < 4; i++) out[i] = rows4(at + 4 * i, stride);
}
inline F rows_half(const uint8_t* at, size_t) { return {static_cast<uint32_t>(at[0] | at[1] << 8), 0}; }

#include "blocks.h"

}  // namespace gguf
