// How do weights lie in a card's memory? In the order in which a warp multiplies them.
//
// 16 rows are a tile, 128 columns a quad: four blocks of 32. Tiles stand in panels of 8 (128 rows), and a panel is
// stored quad by quad: what a block of threads wants next is in one piece. Within a tile's quad come planes of bits, as
// mma.m16n8k32 wants its operand: lane 4 g + t has rows g and g + 8, of each block columns 4 t to 4 t + 3 and 16 + those.
// Then scales, for each g. Types of 32-bit numbers only: everything is addressed in multiples of 16 bytes.
#pragma once

constexpr int PANEL = 8, GROUPS = 8;

// Which planes weights of BITS bits have: of 8, 4, 2 and 1 bits each.
template <class Block, int BITS_> struct Packing : Block {
    static constexpr int BITS = BITS_;
    static constexpr bool P8 = BITS == 8, P4 = BITS >= 4 && BITS <= 6, P2 = BITS == 2 || BITS == 3 || BITS == 6,
                          P1 = BITS == 3 || BITS == 5;
    // Where OFFSET is half of the range, weights become signed bytes, 2^(8 - BITS) times as large, by their upper bit.
    static constexpr bool SHIFTED = Block::OFFSET != 0 && Block::OFFSET == 1 << (BITS - 1) && BITS != 8;
    // The numbers of levels are looked up where they are multiplied.
    static constexpr bool LEVELS = false;
    // A scale is d times an integer, in `WORDS` words of bytes a row; else it is a number of 16 bits a block.
    static constexpr int WORDS = 0;
    // A byte holds a scale and a minimum; else minimums have bytes, or numbers, of their own.
    static constexpr bool NIBBLES = false;
    // Minimums are subtracted.
    static constexpr bool NEGATIVE = Block::LENGTH == 256;
    // A scale of 16 bits is the upper half of a float.
    static constexpr bool POWER = false;
};

struct Q4_0 : Packing<gguf::BlockQ4_0, 4> {};
struct Q4_1 : Packing<gguf::BlockQ4_1, 4> {};
struct Q5_0 : Packing<gguf::BlockQ5_0, 5> {};
struct Q5_1 : Packing<gguf::BlockQ5_1, 5> {};
struct Q8_0 : Packing<gguf::BlockQ8_0, 8> {};
struct IQ4_NL : Packing<gguf::BlockIQ4_NL, 4> {
    static constexpr bool LEVELS = true;
};
struct MXFP4 : Packing<gguf::BlockMXFP4, 4> {
    static constexpr bool LEVELS = true, POWER = true, SHIFTED = false;
};
struct Q2_K : Packing<gguf::BlockQ2_K, 2> {
    static constexpr int WORDS = 2;
    static constexpr bool NIBBLES = true;
};
struct Q3_K : Packing<gguf::BlockQ3_K, 3> {
    static constexpr int WORDS = 2;
};
struct Q4_K : Packing<gguf::BlockQ4_K, 4> {
    static constexpr int WORDS = 2;
};
struct Q5_K : Packing<gguf::BlockQ5_K, 5> {
    static constexpr int WORDS = 2;
};
struct Q6_K : Packing<gguf::BlockQ6_K, 6> {
    static constexpr int WORDS = 2;
};
struct IQ4_XS : Packing<gguf::BlockIQ4_XS, 4> {
    static constexpr int WORDS = 1;
    static constexpr bool LEVELS = true;
};

// Where the parts of a tile's quad begin, in bytes.
template <class T> struct Parts {
    static constexpr int AT8 = 0;
    static constexpr int AT4 = AT8 + (T::P8 ? 2048 : 0);
    static constexpr int AT2 = AT4 + (T::P4 ? 1024 : 0);
    static constexpr int AT1 = AT2 + (T::P2 ? 512 : 0);
    // 16-bit numbers, by g: of four blocks, row g in the lower half, row g + 8 in the upper; or words of row g, of g + 8.
    static constexpr int SCALES = AT1 + (T::P1 ? 256 : 0);
    static constexpr int LOWS = SCALES + (T::WORDS ? 64 * T::WORDS : 128);
    // d of both rows; or d and dmin of row g, then of row g + 8.
    static constexpr int DS = LOWS + (T::LOW && !T::WORDS ? 128 : 0);
    static constexpr int BYTES = DS + (T::WORDS ? T::LOW ? 64 : 32 : 0);
    static_assert(BYTES % 16 == 0, "a tile's quad is copied in pieces of 16 bytes");
};

// Byte at which a tile's quad begins, of a matrix of `tiles` times `quads`; the last panel may be narrower.
WORD int64_t piece_at(int64_t tiles, int64_t quads, int64_t tile, int64_t quad, int bytes) {
    const int64_t panel = tile / PANEL * PANEL, width = tiles - panel < PANEL ? tiles - panel : PANEL;
    return (panel * quads + quad * width + tile - panel) * bytes;
}

// Bits FROM on of each byte of x, WIDTH of them, at bit TO.
template <int FROM, int WIDTH, int TO> WORD uint32_t field(uint32_t x) {
    constexpr uint32_t mask = 0x01010101u * (((1 << WIDTH) - 1) << TO);
    if constexpr (FROM >= TO) return x >> (FROM - TO) & mask;
    else return x << (TO - FROM) & mask;
}

template <class T> struct LevelsOf {
    static constexpr uint32_t word(int) { return 0; }
};
template <class Levels> constexpr uint32_t four_levels(const Levels& levels, int from, int offset) {
    uint32_t found = 0;
    for (int i = 0; i < 4; i++) found |= static_cast<uint32_t>((levels[from + i] - offset) & 255) << 8 * i;
    return found;
}
template <> struct LevelsOf<MXFP4> {
    static constexpr uint32_t word(int i) { return four_levels(gguf::BlockMXFP4::LEVELS, 4 * i, gguf::BlockMXFP4::OFFSET); }
};
template <> struct LevelsOf<IQ4_NL> {
    static constexpr uint32_t word(int i) { return four_levels(gguf::IQ4_LEVELS, 4 * i, 0); }
};
template <> struct LevelsOf<IQ4_XS> : LevelsOf<IQ4_NL> {};

// Four levels, by the four numbers of 4 bits in the lower half of `numbers`.
template <class T> WORD uint32_t levels(uint32_t numbers) {
    constexpr uint32_t l0 = LevelsOf<T>::word(0), l1 = LevelsOf<T>::word(1), l2 = LevelsOf<T>::word(2),
                       l3 = LevelsOf<T>::word(3);
    const uint32_t which = numbers & 0x7777u;
    // Of 16 levels the hardware picks among 8: the upper bit of a number says which eight.
    return pick(pick(l0, l1, which), pick(l2, l3, which), 0x3210u | (numbers & 0x8888u) >> 1);
}

// One block of 32 of a tile as a lane has it: its raw bits, of rows g and g + 8.
template <class T> struct Block32 {
    uint32_t p8[4], p4[2], p2[2], p1[2];  // the planes; of p2 and p1, bits of other blocks are shifted out
    uint32_t scale[2][2], low[2][2];      // [half][row]: integers, or 16-bit numbers
    uint32_t d[2], dmin[2];               // by row

    // The operand of dot32: rows g, g + 8, then the same of the second half.
    WORD void operand(uint32_t (&a)[4]) const {
        half<0>(a);
        half<1>(a);
    }
    template <int H> WORD void half(uint32_t (&a)[4]) const {
        constexpr int to = T::SHIFTED ? 8 - T::BITS : 0;
        UNROLL
        for (int row = 0; row < 2; row++) {
            uint32_t& w = a[2 * H + row];
            if constexpr (T::P8) w = p8[2 * H + row];
            if constexpr (T::LEVELS) w = levels<T>(p4[row] >> 16 * H);
            if constexpr (!T::P8 && !T::LEVELS) {
                w = 0;
                if constexpr (T::P4) w |= field<4 * H, 4, to>(p4[row]);
                if constexpr (T::P2) w |= field<2 * H, 2, to + (T::P4 ? 4 : 0)>(p2[row]);
                if constexpr (T::P1) w |= field<H, 1, to + T::BITS - 1>(p1[row]);
            }
        }
    }
    WORD static float number(uint32_t raw) { return T::POWER ? from_bits(raw << 16) : from_half(raw); }
    WORD float scale_of(int h, int row) const {
        if constexpr (T::WORDS == 0) return number(scale[h][row]);
        const int32_t integer = T::OFFSET || T::LEVELS ? static_cast<int8_t>(scale[h][row]) : scale[h][row];
        return mul(from_half(d[row]), static_cast<float>(integer));
    }
    WORD float low_of(int h, int row) const {
        if constexpr (T::WORDS == 0) return number(low[h][row]);
        return mul(sub(0.0f, from_half(dmin[row])), static_cast<float>(low[h][row]));
    }
};

// A block of a tile whose piece lies in the block's memory.
template <class T> WORD Block32<T> block_at(const uint8_t* piece, int j, int lane) {
    using P = Parts<T>;
    const int g = lane / 4;
    Block32<T> found;
    if constexpr (T::P8) {
        const Four v = *reinterpret_cast<const Four*>(piece + P::AT8 + j * 512 + lane * 16);
        UNROLL
        for (int i = 0; i < 4; i++) found.p8[i] = part_of(v, i);
    }
    Two p2{0, 0}, p1{0, 0};
    Four p4{0, 0, 0, 0};  // of two blocks: what a lane has of one alone, lanes could not read without conflicts
    if constexpr (T::P4) p4 = *reinterpret_cast<const Four*>(piece + P::AT4 + j / 2 * 512 + lane * 16);
    if constexpr (T::P2) p2 = *reinterpret_cast<const Two*>(piece + P::AT2 + lane * 16 + j / 2 * 8);
    if constexpr (T::P1) p1 = *reinterpret_cast<const Two*>(piece + P::AT1 + lane * 8);
    const uint8_t* scales = piece + P::SCALES;
    UNROLL
    for (int row = 0; row < 2; row++) {
        found.p4[row] = j % 2 ? part_of(p4, 2 + row) : part_of(p4, row);
        found.p2[row] = part_of(p2, row) >> j % 2 * 4;
        found.p1[row] = part_of(p1, row) >> 2 * j;
        if constexpr (T::WORDS == 0) {
            found.scale[0][row] = reinterpret_cast<const uint32_t*>(scales)[g * 4 + j] >> 16 * row & 0xffffu;
            if constexpr (T::LOW) {
                found.low[0][row] = reinterpret_cast<const uint32_t*>(piece + P::LOWS)[g * 4 + j] >> 16 * row & 0xffffu;
            }
            continue;
        }
        const uint8_t* own = scales + (g * 2 + row) * 4 * T::WORDS;
        UNROLL
        for (int h = 0; h < T::HALVES; h++) {
            const uint32_t packed = own[j * T::HALVES + h];
            found.scale[h][row] = T::NIBBLES ? packed & 15u : packed;
            if constexpr (T::NIBBLES) found.low[h][row] = packed >> 4;
            else if constexpr (T::LOW) found.low[h][row] = own[4 + j];
        }
        const uint32_t d = reinterpret_cast<const uint32_t*>(piece + P::DS)[T::LOW ? g * 2 + row : g];
        found.d[row] = T::LOW || row == 0 ? d & 0xffffu : d >> 16;
        found.dmin[row] = T::LOW ? d >> 16 : 0;
    }
    return found;
}

// What becomes of an integer sum whose start was MAGIC_BITS, times d: one rounding (ARITHMETIC.md, section 3).
template <class T> struct Times {
    float d, start;
    WORD static Times by(float given) {
        constexpr float factor = T::SHIFTED ? 1.0f / (1 << (8 - T::BITS)) : 1.0f;
        const float d = mul(given, factor);
        return {d, mul(-MAGIC, d)};
    }
    WORD float of(int32_t sum) const { return fma(from_bits(static_cast<uint32_t>(sum)), d, start); }
};

template <class T> constexpr bool is_signed() { return T::SIGNED || T::SHIFTED || T::LEVELS; }
