// In which order do lanes become one number? ARITHMETIC.md, section 2: the same for every vector width.
#pragma once

namespace {

constexpr int STRAND_VECTORS = STRANDS / W;

// Lanes, N vectors of them, to one number: the upper half is added to the lower until one is left. `sum` goes on so.
template <int N> inline float fold(F (&lanes)[N]) {
    for (int count = N / 2; count > 0; count /= 2) {
        for (int v = 0; v < count; v++) lanes[v] = add(lanes[v], lanes[v + count]);
    }
    return sum(lanes[0]);
}

}  // namespace
