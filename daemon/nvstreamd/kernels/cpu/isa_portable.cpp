// The kernels for any processor.
#include "simd_portable.h"

#include "kernels.h"

extern const Kernels nv_portable;
const Kernels nv_portable = make_kernels("portable");
