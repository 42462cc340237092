// Where in a block does each weight lie? The GGML block formats, unpacked for W rows at once.
//
// A format offers: BYTES of a block, LENGTH weights in it; `open` reads what a whole block shares; `part<J>` unpacks
// weights 32 J to 32 J + 31: w[i] holds weights 4 i to 4 i + 3 of every row. Their value is
// scale[h] * (w - OFFSET) + low[h], h being the half where HALVES is 2. Layouts: the GGML block structures.
#pragma once

namespace {

struct Part {
    V w[8];
    F scale[2];
    F low[2];
};

// W rows of weights, `stride` bytes apart, at one block.
struct Rows {
    const uint8_t* at;
    size_t stride;
    V dwords(int offset) const { return rows4(at + offset, stride); }
    F halves(int offset) const { return rows_half(at + offset, stride); }
    // N dwords of each row from `offset` on.
    template <int N> void bytes(int offset, V* out) const {
        for (int i = 0; i < N; i += 4) rows16(at + offset + 4 * i, stride, out + i);
    }
};

// 16 bytes: all low nibbles, then all high nibbles.
inline void nibbles(const V* packed, V* w) {
    for (int i = 0; i < 4; i++) {
        w[i] = both(packed[i], splat8(15));
        w[i + 4] = both(right<4>(packed[i]), splat8(15));
    }
}

// Adds bit i of `bits` to weight i as 16: dword i / 4 gets four neighbouring bits, one a byte.
template <int I> inline V fifth(V bits) {
    // Multiplying a nibble by 1 + 2^7 + 2^14 + 2^21 puts bit n of it at bit 8 n.
    const V nibble = both(right<4 * I>(bits), splat32(15));
    const V spread = either(either(nibble, left<7>(nibble)), either(left<14>(nibble), left<21>(nibble)));
    return left<4>(both(spread, splat8(1)));
}

template <int I = 0> inline void fifths(V bits, V* w) {
    w[I] = either(w[I], fifth<I>(bits));
    if constexpr (I < 7) fifths<I + 1>(bits, w);
}

struct Traits {
    static constexpr int LENGTH = 32, OFFSET = 0, GROUP = 8, HALVES = 1;
    static constexpr bool SIGNED = false, LOW = false;
};

struct BlockQ4_0 : Traits {
    static constexpr int BYTES = 18, OFFSET = 8;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(2, packed);
        nibbles(packed, p.w);
        p.scale[0] = rows.halves(0);
    }
};

struct BlockQ4_1 : Traits {
    static constexpr int BYTES = 20;
    static constexpr bool LOW = true;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(4, packed);
        nibbles(packed, p.w);
        const V both_halves = rows.dwords(0);
        p.scale[0] = low_half(both_halves);
        p.low[0] = low_half(right<16>(both_halves));
    }
};

struct BlockQ5_0 : Traits {
    static constexpr int BYTES = 22, OFFSET = 16, GROUP = 4;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(6, packed);
        nibbles(packed, p.w);
        fifths(rows.dwords(2), p.w);
        p.scale[0] = rows.halves(0);
    }
};

struct BlockQ5_1 : Traits {
    static constexpr int BYTES = 24, GROUP = 4;
    static constexpr bool LOW = true;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(8, packed);
        nibbles(packed, p.w);
        fifths(rows.dwords(4), p.w);
        const V both_halves = rows.dwords(0);
        p.scale[0] = low_half(both_halves);
        p.low[0] = low_half(right<16>(both_halves));
    }
};

struct BlockQ8_0 : Traits {
    static constexpr int BYTES = 34;
    static constexpr bool SIGNED = true;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        rows.bytes<8>(2, p.w);
        p.scale[0] = rows.halves(0);
    }
};

// The 16 levels of the non-linear 4-bit formats.
constexpr int8_t IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct BlockIQ4_NL : Traits {
    static constexpr int BYTES = 18;
    static constexpr bool SIGNED = true;
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(2, packed);
        nibbles(packed, p.w);
        for (V& w : p.w) w = lookup(IQ4_LEVELS, w);
        p.scale[0] = rows.halves(0);
    }
};

struct BlockMXFP4 : Traits {
    // E2M1 numbers times two, plus OFFSET; the scale is half of 2^(exponent - 127) (OCP Microscaling Formats, 5).
    static constexpr int BYTES = 17, OFFSET = 16, GROUP = 4;
    static constexpr int8_t LEVELS[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
    struct Head {};
    static void open(Rows, Head&) {}
    template <int> [[gnu::always_inline]] static void part(Rows rows, Head&, Part& p) {
        V packed[4];
        rows.bytes<4>(1, packed);
        nibbles(packed, p.w);
        for (V& w : p.w) w = lookup(LEVELS, w);
        const V exponent = both(rows.dwords(0), splat32(255));
        // Below 2^-126 a float32 is subnormal: 2^-128 and 2^-127 are written as such.
        const V normal = left<23>(sub32(exponent, splat32(1)));
        const V tiny = if_greater(exponent, splat32(0), splat32(0x00400000), splat32(0x00200000));
        p.scale[0] = from_bits(if_greater(exponent, splat32(1), normal, tiny));
    }
};

struct Super : Traits {
    static constexpr int LENGTH = 256;
};

struct BlockQ2_K : Super {
    static constexpr int BYTES = 84, HALVES = 2;
    static constexpr bool LOW = true;
    struct Head {
        V scales[4], planes[8];
        F d, dmin;
    };
    static void open(Rows rows, Head& head) {
        rows.bytes<4>(0, head.scales);
        const V both_halves = rows.dwords(80);
        head.d = low_half(both_halves);
        head.dmin = sub(zero(), low_half(right<16>(both_halves)));
    }
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        if constexpr (J % 4 == 0) rows.bytes<8>(16 + 8 * J, head.planes);
        for (int i = 0; i < 8; i++) p.w[i] = both(right<J % 4 * 2>(head.planes[i]), splat8(3));
        const V pair = right<J % 2 * 16>(head.scales[J / 2]);
        p.scale[0] = mul(head.d, to_float(both(pair, splat32(15))));
        p.scale[1] = mul(head.d, to_float(both(right<8>(pair), splat32(15))));
        p.low[0] = mul(head.dmin, to_float(both(right<4>(pair), splat32(15))));
        p.low[1] = mul(head.dmin, to_float(both(right<12>(pair), splat32(15))));
    }
};

struct BlockQ3_K : Super {
    static constexpr int BYTES = 110, OFFSET = 4, HALVES = 2;
    struct Head {
        V thirds[8], planes[8], scales[3];
        F d;
    };
    static void open(Rows rows, Head& head) {
        rows.bytes<8>(0, head.thirds);
        for (int i = 0; i < 3; i++) head.scales[i] = rows.dwords(96 + 4 * i);
        head.d = rows.halves(108);
    }
    // Scale S of 16: four lower bits in bytes 0 to 7, two upper bits in bytes 8 to 11; 32 too large.
    template <int S> [[gnu::always_inline]] static F scale(const Head& head) {
        const V low = both(right<S % 4 * 8 + S / 8 * 4>(head.scales[S / 4 % 2]), splat32(15));
        const V high = both(right<S % 4 * 8 + S / 4 * 2>(head.scales[2]), splat32(3));
        return mul(head.d, to_float(sub32(either(low, left<4>(high)), splat32(32))));
    }
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        if constexpr (J % 4 == 0) rows.bytes<8>(32 + 8 * J, head.planes);
        for (int i = 0; i < 8; i++) {
            const V low = both(right<J % 4 * 2>(head.planes[i]), splat8(3));
            p.w[i] = either(low, left<2>(both(right<J>(head.thirds[i]), splat8(1))));
        }
        p.scale[0] = scale<2 * J>(head);
        p.scale[1] = scale<2 * J + 1>(head);
    }
};

// What Q4_K and Q5_K share: d, dmin, and 12 bytes with 8 scales and 8 minimums of 6 bits.
struct Minimums : Super {
    static constexpr bool LOW = true;
    struct Head {
        V scales[4], runs[8], fifths[8];
        F d, dmin;
    };
    static void open_scales(Rows rows, Head& head) {
        rows.bytes<4>(0, head.scales);
        head.d = low_half(head.scales[0]);
        head.dmin = sub(zero(), low_half(right<16>(head.scales[0])));
    }
    template <int J> [[gnu::always_inline]] static void scales(const Head& head, Part& p) {
        constexpr int byte = J % 4 * 8;
        V scale = both(right<byte>(head.scales[1]), splat32(63));
        V low = both(right<byte>(head.scales[2]), splat32(63));
        if constexpr (J >= 4) {
            const V packed = right<byte>(head.scales[3]);
            const V upper[2] = {both(right<byte + 6>(head.scales[1]), splat32(3)),
                                both(right<byte + 6>(head.scales[2]), splat32(3))};
            scale = either(both(packed, splat32(15)), left<4>(upper[0]));
            low = either(both(right<4>(packed), splat32(15)), left<4>(upper[1]));
        }
        p.scale[0] = mul(head.d, to_float(scale));
        p.low[0] = mul(head.dmin, to_float(low));
    }
    // Runs of 32 bytes: part 2 n in the low nibbles, part 2 n + 1 in the high ones.
    template <int J> [[gnu::always_inline]] static void run(Rows rows, int offset, Head& head, Part& p) {
        if constexpr (J % 2 == 0) rows.bytes<8>(offset + 16 * J, head.runs);
        for (int i = 0; i < 8; i++) p.w[i] = both(right<J % 2 * 4>(head.runs[i]), splat8(15));
    }
};

struct BlockQ4_K : Minimums {
    static constexpr int BYTES = 144;
    static void open(Rows rows, Head& head) { open_scales(rows, head); }
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        run<J>(rows, 16, head, p);
        scales<J>(head, p);
    }
};

struct BlockQ5_K : Minimums {
    static constexpr int BYTES = 176, GROUP = 4;
    static void open(Rows rows, Head& head) {
        open_scales(rows, head);
        rows.bytes<8>(16, head.fifths);
    }
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        run<J>(rows, 48, head, p);
        for (int i = 0; i < 8; i++) p.w[i] = either(p.w[i], left<4>(both(right<J>(head.fifths[i]), splat8(1))));
        scales<J>(head, p);
    }
};

struct BlockQ6_K : Super {
    static constexpr int BYTES = 210, OFFSET = 32, GROUP = 2, HALVES = 2;
    struct Head {
        V low[16], high[8], scales[4];
        F d;
    };
    static void open(Rows rows, Head& head) {
        rows.bytes<4>(192, head.scales);
        head.d = rows.halves(208);
    }
    template <int S> [[gnu::always_inline]] static F scale(const Head& head) {
        return mul(head.d, to_float(right_signed<24>(left<24 - S % 4 * 8>(head.scales[S / 4]))));
    }
    // 128 weights: nibbles of 64 bytes, the low ones first; two upper bits each, in four planes of 32 bytes.
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        constexpr int plane = J % 4;
        if constexpr (plane == 0) {
            rows.bytes<16>(J * 16, head.low);
            rows.bytes<8>(128 + J * 8, head.high);
        }
        for (int i = 0; i < 8; i++) {
            const V low = both(right<plane / 2 * 4>(head.low[plane % 2 * 8 + i]), splat8(15));
            p.w[i] = either(low, left<4>(both(right<plane * 2>(head.high[i]), splat8(3))));
        }
        p.scale[0] = scale<2 * J>(head);
        p.scale[1] = scale<2 * J + 1>(head);
    }
};

struct BlockIQ4_XS : Super {
    static constexpr int BYTES = 136;
    static constexpr bool SIGNED = true;
    struct Head {
        V upper, lower;
        F d;
    };
    static void open(Rows rows, Head& head) {
        const V first = rows.dwords(0);
        head.d = low_half(first);
        head.upper = right<16>(first);
        head.lower = rows.dwords(4);
    }
    template <int J> [[gnu::always_inline]] static void part(Rows rows, Head& head, Part& p) {
        V packed[4];
        rows.bytes<4>(8 + 16 * J, packed);
        nibbles(packed, p.w);
        for (V& w : p.w) w = lookup(IQ4_LEVELS, w);
        const V low = both(right<4 * J>(head.lower), splat32(15));
        const V high = left<4>(both(right<2 * J>(head.upper), splat32(3)));
        p.scale[0] = mul(head.d, to_float(sub32(either(low, high), splat32(32))));
    }
};

}  // namespace
