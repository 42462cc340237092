// The kernels for AVX2 with FMA and F16C; compiled with those flags, called only where cpu_has() says so.
#include "simd_avx2.h"

#include "kernels.h"

extern const Kernels nv_avx2;
const Kernels nv_avx2 = make_kernels("AVX2");
