// How do GGUF's blocks become what packed.h says? A thread takes four blocks of a row apart; 16 of them write a piece.
#pragma once

constexpr int REPACK_QUADS = 8, REPACK_THREADS = TILE * REPACK_QUADS;

// Four neighbouring bytes of at most 4 bits as one number of 16 bits.
WORD uint32_t nibbles_of(uint32_t w) {
    return (w & 15u) | (w >> 4 & 0xf0u) | (w >> 8 & 0xf00u) | (w >> 12 & 0xf000u);
}

// Writes what one row has of a tile's quad.
template <class T> struct RowWriter {
    uint8_t* piece;
    int g, r;
    uint32_t p2[4][2], p1[4];

    WORD RowWriter(uint8_t* to, int row) : piece(to), g(row % GROUPS), r(row / GROUPS) {
        UNROLL
        for (int t = 0; t < 4; t++) p2[t][0] = p2[t][1] = p1[t] = 0;
    }
    WORD uint32_t& word(int at) const { return *reinterpret_cast<uint32_t*>(piece + at); }
    WORD void half(int at, uint32_t x) const { *reinterpret_cast<uint16_t*>(piece + at) = static_cast<uint16_t>(x); }

    template <int J> WORD void weights(const gguf::V (&w)[8]) {
        constexpr uint32_t turned = T::SHIFTED ? 0x01010101u << (T::BITS - 1) : 0;  // the upper bit the other way round
        UNROLL
        for (int t = 0; t < 4; t++) {
            const int lane = 4 * g + t;
            const uint32_t low = w[t] ^ turned, high = w[t + 4] ^ turned;
            if constexpr (T::P8) {
                word(Parts<T>::AT8 + J * 512 + lane * 16 + r * 4) = low;
                word(Parts<T>::AT8 + J * 512 + lane * 16 + (2 + r) * 4) = high;
            }
            if constexpr (T::P4) {
                uint32_t& to = word(Parts<T>::AT4 + J / 2 * 512 + lane * 16 + (J % 2 * 2 + r) * 4);
                to = T::LEVELS ? nibbles_of(low) | nibbles_of(high) << 16 : field<0, 4, 0>(low) | field<0, 4, 4>(high);
            }
            if constexpr (T::P2) {
                constexpr int from = T::P4 ? 4 : 0;
                p2[t][J / 2] |= (field<from, 2, 0>(low) | field<from, 2, 2>(high)) << J % 2 * 4;
            }
            if constexpr (T::P1) {
                constexpr int from = T::BITS - 1;
                p1[t] |= (field<from, 1, 0>(low) | field<from, 1, 1>(high)) << J * 2;
            }
        }
    }
    template <int J> WORD void scales(const gguf::Part& p) const {
        if constexpr (T::WORDS == 0) {
            half(Parts<T>::SCALES + g * 16 + J * 4 + r * 2, p.scale[0].half);
            if constexpr (T::LOW) half(Parts<T>::LOWS + g * 16 + J * 4 + r * 2, p.low[0].half);
            return;
        }
        uint8_t* to = piece + Parts<T>::SCALES + (g * 2 + r) * 4 * T::WORDS;
        UNROLL
        for (int h = 0; h < T::HALVES; h++) {
            const int at = J * T::HALVES + h;
            to[at] = static_cast<uint8_t>(p.scale[h].factor);
            if constexpr (T::NIBBLES) to[at] |= static_cast<uint8_t>(p.low[h].factor << 4);
            if constexpr (T::LOW && !T::NIBBLES) to[4 + at] = static_cast<uint8_t>(p.low[h].factor);
        }
        if constexpr (J == QUAD - 1) {
            half(Parts<T>::DS + (T::LOW ? g * 8 + r * 4 : g * 4 + r * 2), p.scale[0].half);
            if constexpr (T::LOW) half(Parts<T>::DS + g * 8 + r * 4 + 2, p.low[0].half);
        }
    }
    WORD void finish() const {
        UNROLL
        for (int t = 0; t < 4; t++) {
            const int lane = 4 * g + t;
            if constexpr (T::P2) {
                word(Parts<T>::AT2 + lane * 16 + r * 4) = p2[t][0];
                word(Parts<T>::AT2 + lane * 16 + (2 + r) * 4) = p2[t][1];
            }
            if constexpr (T::P1) word(Parts<T>::AT1 + lane * 8 + r * 4) = p1[t];
        }
    }
};

// Blocks J on of the quad that begins with block FIRST of what `rows` points at; `left` are there, others are zeros.
template <class T, int FIRST, int J>
WORD void take_apart(RowWriter<T>& to, gguf::Rows rows, typename T::Head& head, int64_t left) {
    if constexpr (J < QUAD) {
        gguf::Part p{};
        if (J < left) {
            if constexpr (T::LENGTH == BLOCK) T::template part<0>(gguf::Rows{rows.at + J * T::BYTES, 0}, head, p);
            else T::template part<FIRST + J>(rows, head, p);
        }
        to.template weights<J>(p.w);
        to.template scales<J>(p);
        take_apart<T, FIRST, J + 1>(to, rows, head, left);
    }
}

// `call.rows` rows of `call.columns` weights at `call.from` -> pieces at `call.to`. Blocks: (tiles, quads / 8).
template <class T> WORD void repack(const GpuRepack& call, uint8_t* shared) {
    const int row = thread() % TILE;
    const int64_t tile = block_x(), first = static_cast<int64_t>(block_y()) * REPACK_QUADS;
    const int64_t quad = first + thread() / TILE, quads = call.quads, blocks = call.columns / BLOCK;
    if (quad < quads) {
        const int64_t at = tile * TILE + row;
        const int64_t left = at < call.rows ? blocks - quad * QUAD : 0;
        const uint8_t* data = reinterpret_cast<const uint8_t*>(call.from_) + at * (call.columns / T::LENGTH * T::BYTES);
        RowWriter<T> writer(shared + thread() / TILE * Parts<T>::BYTES, row);
        const gguf::Rows rows{data + quad * (QUAD * BLOCK) / T::LENGTH * T::BYTES, 0};
        typename T::Head head{};
        if (left > 0) T::open(rows, head);
        if (T::LENGTH == 256 && quad % 2) take_apart<T, T::LENGTH == 256 ? 4 : 0, 0>(writer, rows, head, left);
        else take_apart<T, 0, 0>(writer, rows, head, left);
        writer.finish();
    }
    sync_block();
    constexpr int fours = Parts<T>::BYTES / 16;
    const int64_t tiles = (call.rows + TILE - 1) / TILE;
    const int mine = static_cast<int>(quads - first < REPACK_QUADS ? quads - first : REPACK_QUADS);
    for (int i = thread(); i < mine * fours; i += REPACK_THREADS) {
        uint8_t* to = reinterpret_cast<uint8_t*>(call.to) +
                      piece_at(tiles, quads, tile, first + i / fours, Parts<T>::BYTES);
        reinterpret_cast<Four*>(to)[i % fours] = reinterpret_cast<const Four*>(shared)[i];
    }
}
