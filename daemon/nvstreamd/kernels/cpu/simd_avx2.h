// What do 8 lanes of AVX2, FMA and F16C offer? The vocabulary that the kernels are written in.
//
// A V holds 8 dwords, lane i belonging to weight row i of a group; a dword is also four bytes: neighbouring weights.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int W = 8;
using V = __m256i;
using F = __m256;

inline bool cpu_has() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

inline F zero() { return _mm256_setzero_ps(); }
inline F splat(float x) { return _mm256_set1_ps(x); }
inline F load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* y, F x) { _mm256_storeu_ps(y, x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
// A NaN in `x` stays one: the instruction returns its second operand.
inline F at_least(F low, F x) { return _mm256_max_ps(low, x); }
inline F at_most(F high, F x) { return _mm256_min_ps(high, x); }
inline F to_float(V x) { return _mm256_cvtepi32_ps(x); }
inline V bits(F x) { return _mm256_castps_si256(x); }
inline F from_bits(V x) { return _mm256_castsi256_ps(x); }

inline float sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline F load_half(const uint16_t* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
inline F load_bfloat(const uint16_t* x) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return from_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline void store_half(uint16_t* y, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline V splat8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline V splat32(int32_t x) { return _mm256_set1_epi32(x); }
inline V both(V a, V b) { return _mm256_and_si256(a, b); }
inline V either(V a, V b) { return _mm256_or_si256(a, b); }
inline V add32(V a, V b) { return _mm256_add_epi32(a, b); }
inline V sub32(V a, V b) { return _mm256_sub_epi32(a, b); }
template <int N> inline V left(V a) { return _mm256_slli_epi32(a, N); }
template <int N> inline V right(V a) { return _mm256_srli_epi32(a, N); }
template <int N> inline V right_signed(V a) { return _mm256_srai_epi32(a, N); }
inline V if_greater(V a, V b, V yes, V no) { return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(a, b)); }
inline V lookup(const int8_t (&table)[16], V index) {
    const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), index);
}

inline int32_t dword(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// The dword at `p` of each of W rows that are `stride` bytes apart.
inline V rows4(const uint8_t* p, size_t stride) {
    const uint8_t* q = p + 4 * stride;
    return _mm256_setr_epi32(dword(p), dword(p + stride), dword(p + 2 * stride), dword(p + 3 * stride), dword(q),
                             dword(q + stride), dword(q + 2 * stride), dword(q + 3 * stride));
}

inline int16_t word(const uint8_t* p) {
    int16_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// The float16 at `p` of each row.
inline F rows_half(const uint8_t* p, size_t stride) {
    const uint8_t* q = p + 4 * stride;
    const __m128i words = _mm_setr_epi16(word(p), word(p + stride), word(p + 2 * stride), word(p + 3 * stride), word(q),
                                         word(q + stride), word(q + 2 * stride), word(q + 3 * stride));
    return _mm256_cvtph_ps(words);
}

// The lower 16 bits of each dword, a float16, as float32.
inline F low_half(V x) {
    const V words = _mm256_packus_epi32(both(x, splat32(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
}

// 16 bytes of each row, transposed: out[j] holds dword j of all rows.
inline void rows16(const uint8_t* p, size_t stride, V* out) {
    V a[4];
    for (int i = 0; i < 4; i++) {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + (i + 4) * stride));
        a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    const V t0 = _mm256_unpacklo_epi32(a[0], a[1]), t1 = _mm256_unpacklo_epi32(a[2], a[3]);
    const V t2 = _mm256_unpackhi_epi32(a[0], a[1]), t3 = _mm256_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm256_unpacklo_epi64(t0, t1);
    out[1] = _mm256_unpackhi_epi64(t0, t1);
    out[2] = _mm256_unpacklo_epi64(t2, t3);
    out[3] = _mm256_unpackhi_epi64(t2, t3);
}

inline V four(const int8_t* x) { return splat32(dword(reinterpret_cast<const uint8_t*>(x))); }

// Sum over 4 * N weights of each row, weights from 0 to 255 / GROUP / 2: GROUP products of pairs fit into 16 bits.
template <int N, int GROUP> inline V dot_unsigned(const V* w, const int8_t* x) {
    V total;
    for (int g = 0; g < N; g += GROUP) {
        V pairs = _mm256_maddubs_epi16(w[g], four(x + 4 * g));
        for (int i = g + 1; i < g + GROUP && i < N; i++) {
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i], four(x + 4 * i)));
        }
        const V part = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        total = g ? add32(total, part) : part;
    }
    return total;
}

// What dot_signed wants to be told of signed weights beside themselves.
inline V magnitude(V w) { return _mm256_abs_epi8(w); }

// Sum over 4 * N signed weights of each row: the sign moves to the activations. `whole` is their sum, not needed here.
template <int N, class M> inline V dot_signed(const V* w, const M& magnitudes, const int8_t* x, int32_t) {
    V total;
    for (int i = 0; i < N; i++) {
        const V pairs = _mm256_maddubs_epi16(magnitudes(i), _mm256_sign_epi8(four(x + 4 * i), w[i]));
        const V part = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        total = i ? add32(total, part) : part;
    }
    return total;
}

}  // namespace
