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

// A result, with what is added to it. Of a pair of a row and an expert, it is that of row `pair`.
WORD void write(const GpuProducts& call, const GpuMatrix& matrix, int64_t row, int64_t of, float total,
                int64_t pair = 0) {
    if (of >= matrix.rows || row >= call.rows) return;
    if (matrix.bias) total = add(total, element(reinterpret_cast<const uint8_t*>(matrix.bias), matrix.bias_type, of));
    const int64_t place = call.places ? reinterpret_cast<const int64_t*>(call.places)[row] : row + pair;
    float* y = reinterpret_cast<float*>(matrix.y) + place * matrix.stride + of;
    if (call.adds) total = add(*y, total);
    *y = total;
    if (call.unsound && (bits(total) & 0x7f800000u) == 0x7f800000u) {
        lower_to(reinterpret_cast<int32_t*>(call.unsound), static_cast<int32_t>(call.number));
    }
}
