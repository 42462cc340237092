// Which function serves which type? The table of one instruction set; included last, behind its simd_*.h.
#pragma once

#include "shapes.h"

#include "blocks.h"
#include "integers.h"
#include "sums.h"
#include "floats.h"
#include "rows.h"
#include "attention.h"
#include "routing.h"

namespace {

constexpr Kernels make_kernels(const char* name) {
    Kernels k{};
    k.name = name;
    k.usable = cpu_has;
    k.lanes = W;
    k.product[F32] = float_product<WeightF32>;
    k.product[F16] = float_product<WeightF16>;
    k.product[BF16] = float_product<WeightBF16>;
    k.product[Q4_0] = integer_product<BlockQ4_0>;
    k.product[Q4_1] = integer_product<BlockQ4_1>;
    k.product[Q5_0] = integer_product<BlockQ5_0>;
    k.product[Q5_1] = integer_product<BlockQ5_1>;
    k.product[Q8_0] = integer_product<BlockQ8_0>;
    k.product[Q2_K] = integer_product<BlockQ2_K>;
    k.product[Q3_K] = integer_product<BlockQ3_K>;
    k.product[Q4_K] = integer_product<BlockQ4_K>;
    k.product[Q5_K] = integer_product<BlockQ5_K>;
    k.product[Q6_K] = integer_product<BlockQ6_K>;
    k.product[IQ4_NL] = integer_product<BlockIQ4_NL>;
    k.product[IQ4_XS] = integer_product<BlockIQ4_XS>;
    k.product[MXFP4] = integer_product<BlockMXFP4>;
    k.quantise = quantise;
    k.norm = norm;
    k.gate[SILU] = gate<SILU>;
    k.gate[GELU] = gate<GELU>;
    k.place = place;
    k.attend = attend;
    k.scratch = scratch;
    k.choose = choose;
    k.mix = mix;
    k.read = read;
    return k;
}

}  // namespace
