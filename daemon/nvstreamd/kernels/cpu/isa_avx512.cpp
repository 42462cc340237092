// The kernels for AVX-512; compiled with those flags, called only where cpu_has() says so.
#include "simd_avx512.h"

#include "kernels.h"

extern const Kernels nv_avx512;
const Kernels nv_avx512 = make_kernels("AVX-512");
