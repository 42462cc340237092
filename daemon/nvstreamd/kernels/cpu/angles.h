// By which angles are heads turned? cos and sin in binary64, whose every operation is in its place (ARITHMETIC.md,
// section 6): a C library's own differ by version.
#pragma once

#include <cmath>
#include <cstdint>

namespace {

constexpr double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

// cos and sin of positions times frequencies, times a magnitude, [rows, pairs] float32 each.
void turn_all(const double* frequencies, int64_t pairs, double magnitude, const int64_t* positions, int64_t rows,
              float* cosines, float* sines) {
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t pair = 0; pair < pairs; pair++) {
            const double angle = static_cast<double>(positions[row]) * frequencies[pair];
            const double quarter = std::nearbyint(angle * 0x1.45f306dc9c883p-1);
            // pi / 2 in pieces of 28, 29 and 53 bits (Cody and Waite).
            const double r = angle - quarter * 0x1.921fb54p+0 - quarter * 0x1.10b4611p-30 - quarter * 0x1.4c4c6628b80dcp-59;
            const double z = r * r;
            double sine = 1 / factorial(17), cosine = 1 / factorial(16);
            for (int order = 8; order > 0; order--) {
                sine = 1 / factorial(2 * order - 1) - z * sine;
                cosine = 1 / factorial(2 * order - 2) - z * cosine;
            }
            sine = r * sine;
            const double at = quarter - 4 * std::floor(quarter / 4);
            const bool odd = at == 1 || at == 3;
            const double over = odd ? sine : cosine, up = odd ? cosine : sine;
            cosines[row * pairs + pair] = static_cast<float>((at == 1 || at == 2 ? -over : over) * magnitude);
            sines[row * pairs + pair] = static_cast<float>((at >= 2 ? -up : up) * magnitude);
        }
    }
}

}  // namespace
