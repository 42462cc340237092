// Which matrix does a block of threads multiply, and where do its results go? What all products share.
#pragma once

// Columns of a block, blocks of a quad, rows of a tile.
constexpr int BLOCK = 32, QUAD = 4, TILE = 16;

WORD uint32_t part_of(const Four& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
WORD uint32_t part_of(const Two& v, int i) { return i == 0 ? v.x : v.y; }

// The matrix of a tile, and the tile's number in it.
WORD const GpuMatrix& matrix_of(const GpuProducts& call, int64_t& tile) {
    int m = 0;
    while (tile >= call.matrix[m].tiles) tile -= call.matrix[m++].tiles;
    return call.matrix[m];
}

// Whose weights does a block of threads multiply, by which rows? Matrices' data count from `base`; rows of activations
// from `x` on have the results `first` to `end`.
struct Share {
    int64_t base, x, first, end;
};
WORD Share share_of(const GpuProducts& call) {
    if (call.groups) {
        const GpuGroup& group = reinterpret_cast<const GpuGroup*>(call.groups)[block_y()];
        return {group.base, group.first, group.first, group.first + group.count};
    }
    if (call.choices) {
        const int64_t pair = block_y();
        const int32_t expert = reinterpret_cast<const int32_t*>(call.choices)[pair];
        return {reinterpret_cast<const int64_t*>(call.table)[expert], pair / call.of_each, pair, pair + 1};
    }
    return {0, 0, 0, call.rows};
}

// A result, with what is added to it, of a row before `end`.
WORD void write(const GpuProducts& call, const GpuMatrix& matrix, int64_t row, int64_t of, float total, int64_t end) {
    if (of >= matrix.rows || row >= end) return;
    if (matrix.bias) total = add(total, element(reinterpret_cast<const uint8_t*>(matrix.bias), matrix.bias_type, of));
    const int64_t place = call.places ? reinterpret_cast<const int64_t*>(call.places)[row] : row;
    float* y = reinterpret_cast<float*>(matrix.y) + place * matrix.stride + of;
    if (call.adds) total = add(*y, total);
    *y = total;
    if (call.unsound && (bits(total) & 0x7f800000u) == 0x7f800000u) {
        lower_to(reinterpret_cast<int32_t*>(call.unsound), static_cast<int32_t>(call.number));
    }
}
