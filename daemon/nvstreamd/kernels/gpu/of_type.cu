// Which kernels does a type of weights need? Those of TYPE, a struct of packed.h.
#include "words.h"
#include "structs.h"
#include "numbers.h"
#include "products.h"
#include "unpack.h"
#include "packed.h"
#include "repack.h"
#include "narrow.h"
#include "wide.h"

static_assert(Parts<TYPE>::BYTES == PIECE_BYTES, "gpu_form.py counts otherwise");

KERNEL(repack_tiles, GpuRepack, REPACK_THREADS, 4) {
    SHARED(uint8_t, pieces, REPACK_QUADS * Parts<TYPE>::BYTES);
    repack<TYPE>(call, pieces);
}

// Up to 1, 8 and 16 rows of activations: columns that a lane has, tiles of 8 rows, quads a turn, stages; by warps.
#define NARROW(NAME, C, NT, Q, STAGES, WARPS, BLOCKS)                                                                  \
    KERNEL(NAME, GpuProducts, 32 * WARPS, BLOCKS) {                                                                    \
        SHARED(float, hand, 32 * NT * 2 * C);                                                                          \
        SHARED_AS_LAUNCHED(memory);                                                                                    \
        narrow<TYPE, C, NT, Q, STAGES, WARPS>(call, hand, memory);                                                     \
    }
#define NARROWS(ROWS, C, NT, Q)                                                                                        \
    NARROW(narrow_##ROWS##_by_1, C, NT, Q, 3, 1, 16)                                                                   \
    NARROW(narrow_##ROWS##_by_2, C, NT, Q, 4, 2, 8)                                                                    \
    NARROW(narrow_##ROWS##_by_4, C, NT, Q, 3, 4, 4)
NARROWS(1, 1, 1, 2)
NARROWS(8, 2, 1, 2)
NARROWS(16, 2, 2, 1)

// Rectangles of weight rows by rows of activations: tiles of a warp, warps, stages.
#define WIDE(NAME, M, N, GM, GN, STAGES, BLOCKS)                                                                       \
    KERNEL(NAME, GpuProducts, GM * GN * 32, BLOCKS) {                                                                  \
        SHARED_AS_LAUNCHED(memory);                                                                                    \
        wide<TYPE, M, N, GM, GN, STAGES>(call, memory);                                                                \
    }
WIDE(wide_32x32, 1, 2, 2, 2, 4, 6)
WIDE(wide_64x32, 2, 2, 2, 2, 4, 4)
WIDE(wide_32x64, 1, 4, 2, 2, 4, 4)
WIDE(wide_64x64, 2, 4, 2, 2, 4, 3)
WIDE(wide_64x128, 2, 8, 2, 2, 3, 2)
WIDE(wide_128x128, 4, 8, 2, 2, 3, 1)
