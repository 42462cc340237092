// How is the same vocabulary spoken without any instruction set in particular? GCC's and Clang's vector extensions.
//
// Little-endian, as GGUF files are.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int W = 8;
typedef int32_t V __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(32)));
typedef float F __attribute__((vector_size(32)));

inline bool cpu_has() { return true; }

inline F splat(float x) { return F{x, x, x, x, x, x, x, x}; }
inline F zero() { return splat(0); }
inline F load(const float* x) {
    F f;
    std::memcpy(&f, x, sizeof f);
    return f;
}
inline void store(float* y, F x) { std::memcpy(y, &x, sizeof x); }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
#if defined(__FP_FAST_FMAF)
inline F fma(F a, F b, F c) {
    F out;
    for (int i = 0; i < W; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
}
#else
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
// In double precision the product is exact. Its sum is rounded to odd there, and then to a float: once, in effect
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). Far faster than fmaf in software.
inline F fma(F a, F b, F c) {
    const Doubles product = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
    const Doubles other = __builtin_convertvector(c, Doubles);
    const Doubles total = product + other;
    // What the sum lost (Knuth's two-sum); NaN where it is not finite.
    const Doubles part = total - product;
    const Doubles lost = (product - (total - part)) + (other - part);
    const Longs raw = reinterpret_cast<Longs>(total);
    const Longs lossy = (lost < 0) | (lost > 0);
    const Longs even = (raw & 1) - 1;
    const Longs away = (reinterpret_cast<Longs>(lost) ^ raw) >> 63 | 1;
    return __builtin_convertvector(reinterpret_cast<Doubles>(raw + (lossy & even & away)), F);
}
#endif
inline F at_least(F low, F x) { return low > x ? low : x; }
inline F at_most(F high, F x) { return high < x ? high : x; }
inline F to_float(V x) { return __builtin_convertvector(x, F); }
inline V bits(F x) { return reinterpret_cast<V>(x); }
inline F from_bits(V x) { return reinterpret_cast<F>(x); }
inline float sum(F x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(fraction), -24);
    const uint32_t raw = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float f;
    std::memcpy(&f, &raw, sizeof f);
    return f;
}

// Rounded to even; the caller keeps |x| within 65504.
inline uint16_t float_to_half(float x) {
    uint32_t raw;
    std::memcpy(&raw, &x, sizeof raw);
    const auto sign = static_cast<uint16_t>(raw >> 16 & 0x8000);
    if (x != x) return sign | 0x7e00;
    // Below 2^-14 halves are whole multiples of 2^-24.
    const float size = std::fabs(x);
    if (size < 6.103515625e-05f) return sign | static_cast<uint16_t>(std::nearbyint(size * 16777216.0f));
    const uint32_t magnitude = raw & 0x7fffffff;
    return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline F load_half(const uint16_t* x) {
    F f;
    for (int i = 0; i < W; i++) f[i] = half_to_float(x[i]);
    return f;
}
inline F load_bfloat(const uint16_t* x) {
    V v;
    for (int i = 0; i < W; i++) v[i] = static_cast<int32_t>(static_cast<uint32_t>(x[i]) << 16);
    return from_bits(v);
}
inline void store_half(uint16_t* y, F x) {
    for (int i = 0; i < W; i++) y[i] = float_to_half(x[i]);
}

inline V splat32(int32_t x) { return V{x, x, x, x, x, x, x, x}; }
inline V splat8(int x) { return splat32(x * 0x01010101); }
inline V both(V a, V b) { return a & b; }
inline V either(V a, V b) { return a | b; }
inline V add32(V a, V b) { return a + b; }
inline V sub32(V a, V b) { return a - b; }
template <int N> inline V left(V a) { return reinterpret_cast<V>(reinterpret_cast<U>(a) << N); }
template <int N> inline V right(V a) { return reinterpret_cast<V>(reinterpret_cast<U>(a) >> N); }
template <int N> inline V right_signed(V a) { return a >> N; }
inline V if_greater(V a, V b, V yes, V no) { return a > b ? yes : no; }
inline V lookup(const int8_t (&table)[16], V index) {
    Bytes out = reinterpret_cast<Bytes>(index);
    for (int i = 0; i < 4 * W; i++) out[i] = table[out[i] & 15];
    return reinterpret_cast<V>(out);
}

inline V rows4(const uint8_t* p, size_t stride) {
    V v;
    for (int i = 0; i < W; i++) {
        int32_t x;
        std::memcpy(&x, p + i * stride, sizeof x);
        v[i] = x;
    }
    return v;
}
inline F rows_half(const uint8_t* p, size_t stride) {
    F f;
    for (int i = 0; i < W; i++) {
        uint16_t x;
        std::memcpy(&x, p + i * stride, sizeof x);
        f[i] = half_to_float(x);
    }
    return f;
}
inline F low_half(V x) {
    F f;
    for (int i = 0; i < W; i++) f[i] = half_to_float(static_cast<uint16_t>(x[i]));
    return f;
}
inline void rows16(const uint8_t* p, size_t stride, V* out) {
    for (int j = 0; j < 4; j++) out[j] = rows4(p + 4 * j, stride);
}

// Four products of each dword; the sign of the weights is in the shift.
template <int N, class M> inline V dot_signed(const V* w, const M&, const int8_t* x, int32_t) {
    V total = splat32(0);
    for (int i = 0; i < N; i++) {
        total += (left<24>(w[i]) >> 24) * splat32(x[4 * i]) + (left<16>(w[i]) >> 24) * splat32(x[4 * i + 1]) +
                 (left<8>(w[i]) >> 24) * splat32(x[4 * i + 2]) + (w[i] >> 24) * splat32(x[4 * i + 3]);
    }
    return total;
}
template <int N, int> inline V dot_unsigned(const V* w, const int8_t* x) { return dot_signed<N>(w, w, x, 0); }
inline V magnitude(V w) { return w; }

}  // namespace
