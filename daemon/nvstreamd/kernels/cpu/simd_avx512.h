// What do 16 lanes of AVX-512 (F, BW, VL, DQ) offer, with or without VNNI? The same vocabulary as simd_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int W = 16;
using V = __m512i;
using F = __m512;

inline bool cpu_has() {
    __builtin_cpu_init();
    bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(__AVX512VNNI__)
    has = has && __builtin_cpu_supports("avx512vnni");
#endif
    return has;
}

inline F zero() { return _mm512_setzero_ps(); }
inline F splat(float x) { return _mm512_set1_ps(x); }
inline F load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* y, F x) { _mm512_storeu_ps(y, x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F at_least(F low, F x) { return _mm512_max_ps(low, x); }
inline F at_most(F high, F x) { return _mm512_min_ps(high, x); }
inline F to_float(V x) { return _mm512_cvtepi32_ps(x); }
inline V bits(F x) { return _mm512_castps_si512(x); }
inline F from_bits(V x) { return _mm512_castsi512_ps(x); }

inline float sum(F x) {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline F load_half(const uint16_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline F load_bfloat(const uint16_t* x) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline void store_half(uint16_t* y, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline V splat8(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline V splat32(int32_t x) { return _mm512_set1_epi32(x); }
inline V both(V a, V b) { return _mm512_and_si512(a, b); }
inline V either(V a, V b) { return _mm512_or_si512(a, b); }
inline V add32(V a, V b) { return _mm512_add_epi32(a, b); }
inline V sub32(V a, V b) { return _mm512_sub_epi32(a, b); }
template <int N> inline V left(V a) { return _mm512_slli_epi32(a, N); }
template <int N> inline V right(V a) { return _mm512_srli_epi32(a, N); }
template <int N> inline V right_signed(V a) { return _mm512_srai_epi32(a, N); }
inline V if_greater(V a, V b, V yes, V no) {
    return _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, b), no, yes);
}
inline V lookup(const int8_t (&table)[16], V index) {
    const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), index);
}

inline int32_t dword(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// Built in registers: loading what narrow stores have just written would wait for them.
inline V rows4(const uint8_t* p, size_t s) {
    const uint8_t *q = p + 4 * s, *r = p + 8 * s, *t = p + 12 * s;
    return _mm512_setr_epi32(dword(p), dword(p + s), dword(p + 2 * s), dword(p + 3 * s), dword(q), dword(q + s),
                             dword(q + 2 * s), dword(q + 3 * s), dword(r), dword(r + s), dword(r + 2 * s),
                             dword(r + 3 * s), dword(t), dword(t + s), dword(t + 2 * s), dword(t + 3 * s));
}

inline int16_t word(const uint8_t* p) {
    int16_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline __m128i words8(const uint8_t* p, size_t s) {
    const uint8_t* q = p + 4 * s;
    return _mm_setr_epi16(word(p), word(p + s), word(p + 2 * s), word(p + 3 * s), word(q), word(q + s),
                          word(q + 2 * s), word(q + 3 * s));
}

inline F rows_half(const uint8_t* p, size_t stride) {
    const __m128i low = words8(p, stride), high = words8(p + 8 * stride, stride);
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

inline F low_half(V x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }

inline __m128i sixteen(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline void rows16(const uint8_t* p, size_t stride, V* out) {
    V a[4];
    for (int i = 0; i < 4; i++) {
        const uint8_t* q = p + i * stride;
        a[i] = _mm512_castsi128_si512(sixteen(q));
        a[i] = _mm512_inserti32x4(a[i], sixteen(q + 4 * stride), 1);
        a[i] = _mm512_inserti32x4(a[i], sixteen(q + 8 * stride), 2);
        a[i] = _mm512_inserti32x4(a[i], sixteen(q + 12 * stride), 3);
    }
    const V t0 = _mm512_unpacklo_epi32(a[0], a[1]), t1 = _mm512_unpacklo_epi32(a[2], a[3]);
    const V t2 = _mm512_unpackhi_epi32(a[0], a[1]), t3 = _mm512_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t1);
    out[1] = _mm512_unpackhi_epi64(t0, t1);
    out[2] = _mm512_unpacklo_epi64(t2, t3);
    out[3] = _mm512_unpackhi_epi64(t2, t3);
}

inline V four(const int8_t* x) { return splat32(dword(reinterpret_cast<const uint8_t*>(x))); }

#if defined(__AVX512VNNI__)

// Two chains: the instruction takes four cycles or more.
template <int N, class G> inline V dot_bytes(const G& w, const int8_t* x) {
    V totals[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < N; i++) totals[i % 2] = _mm512_dpbusd_epi32(totals[i % 2], w(i), four(x + 4 * i));
    return add32(totals[0], totals[1]);
}

template <int N, int> inline V dot_unsigned(const V* w, const int8_t* x) {
    return dot_bytes<N>([&](int i) { return w[i]; }, x);
}

// Signed weights plus 128 are unsigned; 128 times the sum of the activations is too much then.
inline V magnitude(V w) { return _mm512_xor_si512(w, splat8(0x80)); }
template <int N, class M> inline V dot_signed(const V*, const M& raised, const int8_t* x, int32_t whole) {
    return sub32(dot_bytes<N>(raised, x), splat32(whole * 128));
}

#else

template <int N, int GROUP> inline V dot_unsigned(const V* w, const int8_t* x) {
    V total = _mm512_setzero_si512();
    for (int g = 0; g < N; g += GROUP) {
        V pairs = _mm512_maddubs_epi16(w[g], four(x + 4 * g));
        for (int i = g + 1; i < g + GROUP && i < N; i++) {
            pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w[i], four(x + 4 * i)));
        }
        total = add32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    return total;
}

inline V magnitude(V w) { return _mm512_abs_epi8(w); }
template <int N, class M> inline V dot_signed(const V* w, const M& magnitudes, const int8_t* x, int32_t) {
    V total = _mm512_setzero_si512();
    for (int i = 0; i < N; i++) {
        const V a = four(x + 4 * i);
        const V turned = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w[i]), _mm512_setzero_si512(), a);
        const V pairs = _mm512_maddubs_epi16(magnitudes(i), turned);
        total = add32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    return total;
}

#endif

}  // namespace
