// Which experts does a row go to, and how does what they found come together? ARITHMETIC.md, section 9.
#pragma once

namespace {

// Softmax without the division: scores become e^(score - most), zeros follow up to whole strands; their sum.
inline float exponentials(float* scores, int64_t count, float most) {
    const int64_t whole = (count + STRANDS - 1) / STRANDS * STRANDS;
    for (int64_t i = count; i < whole; i++) scores[i] = most;
    for (int64_t i = 0; i < whole; i += W) store(scores + i, exponential(sub(load(scores + i), splat(most))));
    for (int64_t i = count; i < whole; i++) scores[i] = 0.0f;
    F strands[STRAND_VECTORS];
    for (F& lanes : strands) lanes = zero();
    for (int64_t i = 0; i < whole; i += STRANDS) {
        for (int v = 0; v < STRAND_VECTORS; v++) strands[v] = add(strands[v], load(scores + i + v * W));
    }
    return fold(strands);
}

// Scores may be NaN: then it is said of no expert that it is better, and each is still chosen once.
void choose(float* scores, int64_t count, int64_t used, int32_t* experts, float* weights) {
    bool taken[MOST_EXPERTS] = {};
    for (int64_t r = 0; r < used; r++) {
        int64_t best = -1;
        for (int64_t e = 0; e < count; e++) {
            if (!taken[e] && (best < 0 || scores[e] > scores[best])) best = e;
        }
        taken[best] = true;
        experts[r] = static_cast<int32_t>(best);
    }
    const float total = exponentials(scores, count, scores[experts[0]]);
    float chosen = 0.0f;
    for (int64_t r = 0; r < used; r++) {
        weights[r] = scores[experts[r]] / total;
        chosen += weights[r];
    }
    const float least = chosen < 0x1p-14f ? 0x1p-14f : chosen;
    for (int64_t r = 0; r < used; r++) weights[r] /= least;
}

void mix(const float* parts, const float* weights, int64_t used, int64_t columns, float* x) {
    int64_t i = 0;
    for (; i + W <= columns; i += W) {
        F total = zero();
        for (int64_t r = 0; r < used; r++) total = fma(splat(weights[r]), load(parts + r * columns + i), total);
        store(x + i, add(load(x + i), total));
    }
    if (i == columns) return;
    float rest[W] = {};
    F total = zero();
    for (int64_t r = 0; r < used; r++) {
        std::memcpy(rest, parts + r * columns + i, (columns - i) * sizeof *rest);
        total = fma(splat(weights[r]), load(rest), total);
    }
    std::memcpy(rest, x + i, (columns - i) * sizeof *rest);
    store(rest, add(load(rest), total));
    std::memcpy(x + i, rest, (columns - i) * sizeof *rest);
}

}  // namespace
