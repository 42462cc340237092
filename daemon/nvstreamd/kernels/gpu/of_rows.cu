// Which kernels need no type of weights? What rows go through between products, attention, and floating-point weights.
#include "words.h"
#include "structs.h"
#include "numbers.h"
#include "products.h"
#include "floats.h"
#include "rows.h"
#include "heads.h"
#include "attention.h"
#include "routing.h"
#include "groups.h"

KERNEL(prepare_rows, GpuRows, ROW_THREADS, 4) {
    SHARED_AS_LAUNCHED(memory);
    prepare(call, memory);
}
KERNEL(gate_rows, GpuRows, ROW_THREADS, 4) { gate(call); }
KERNEL(add_normed_rows, GpuRows, ROW_THREADS, 4) { add_normed(call); }
KERNEL(mix_rows, GpuRows, ROW_THREADS, 4) { mix(call); }
KERNEL(take_words, GpuRows, ROW_THREADS, 4) { take(call); }
KERNEL(scatter_rows, GpuRows, ROW_THREADS, 4) { scatter(call); }
KERNEL(look_at_rows, GpuRows, ROW_THREADS, 4) { look(call); }
KERNEL(angles_of_rows, GpuRows, ROW_THREADS, 1) { angles(call); }
KERNEL(route_rows, GpuRows, 32, 8) { route(call); }
KERNEL(group_pairs, GpuGrouping, ROW_THREADS, 1) { group(call); }
KERNEL(products_by_four, GpuProducts, TILE * FLOAT_STRANDS / 4, 4) { floats<4>(call); }
KERNEL(products_by_one, GpuProducts, TILE * FLOAT_STRANDS, 1) { floats<1>(call); }
KERNEL(place_rows, GpuAttend, ROW_THREADS, 4) { place(call); }

#define ATTENTION(N)                                                                                                   \
    KERNEL(attend_through_##N, GpuAttend, CHUNK, 2) {                                                                  \
        SHARED(Found<N>, found, 1);                                                                                    \
        attention<N>(call, *found).through();                                                                          \
    }                                                                                                                  \
    KERNEL(attend_chunk_##N, GpuAttend, CHUNK, 2) {                                                                    \
        SHARED(Found<N>, found, 1);                                                                                    \
        const Attention<N> of = attention<N>(call, *found);                                                            \
        const int chunk = of.first_chunk() + block_x();                                                            \
        if (chunk < of.chunks()) of.one_chunk(chunk);                                                                  \
    }                                                                                                                  \
    KERNEL(attend_join_##N, GpuAttend, CHUNK, 2) {                                                                     \
        SHARED(Found<N>, found, 1);                                                                                    \
        attention<N>(call, *found).joined();                                                                           \
    }
ATTENTION(4)
ATTENTION(8)
