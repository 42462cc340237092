// What does a step of a program do? Values and tensors by number become addresses, and the products or attention run.
#pragma once

#include <cstring>
#include <deque>
#include <vector>

#include "experts.h"
#include "linear.h"
#include "stretches.h"

namespace {

// A stage at work: where its weights lie, and vectors that had to be made float32.
struct Stage {
    Context& context;
    const CpuPass& pass;
    const uint8_t* weights;
    std::deque<std::vector<float>> widened{};

    const uint8_t* address(const CpuTensor& tensor) const {
        const uint8_t* constants = reinterpret_cast<const uint8_t*>(pass.constants);
        return (tensor.base == CONSTANTS ? constants : weights) + tensor.offset;
    }
    float* value(int64_t number) const {
        return reinterpret_cast<float*>(reinterpret_cast<const uint64_t*>(pass.values)[number]);
    }
    const float* angles(int64_t number) const {
        return reinterpret_cast<const float*>(reinterpret_cast<const uint64_t*>(pass.angles)[number]);
    }
};

float from_binary16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, rest = half & 1023;
    float found;
    if (exponent == 0) {
        found = static_cast<float>(rest) * 0x1p-24f;  // zero or subnormal: exact
        return sign ? -found : found;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

float from_bfloat16(uint16_t upper) {
    const uint32_t bits = static_cast<uint32_t>(upper) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

// A vector of `count` as float32: where it lies, or widened; null where there is none.
const float* vector(Stage& stage, const CpuTensor& tensor, int64_t count) {
    if (tensor.base == NONE) return nullptr;
    const uint8_t* data = stage.address(tensor);
    if (tensor.type == F32) return reinterpret_cast<const float*>(data);
    std::vector<float>& made = stage.widened.emplace_back(static_cast<size_t>(count));
    for (size_t i = 0; i < made.size(); i++) {
        uint16_t raw;
        std::memcpy(&raw, data + i * sizeof raw, sizeof raw);
        made[i] = tensor.type == F16 ? from_binary16(raw) : from_bfloat16(raw);
    }
    return made.data();
}

const char* check_vector(const CpuTensor& tensor) {
    const bool known = tensor.base == NONE || is_float(tensor.type);
    return known ? nullptr : "a vector of a type that is none for vectors";
}

const char* check(const CpuStep& step) {
    for (const CpuTensor* tensor : {&step.norm, &step.q_norm, &step.k_norm}) {
        if (const char* wrong = check_vector(*tensor)) return wrong;
    }
    if (step.op == ATTEND) {
        if (step.kv_heads < 1 || step.heads % step.kv_heads) return "bad heads";
        return step.window >= 0 ? nullptr : "bad window";
    }
    if (step.op == MIX) return step.columns > 0 && step.used > 0 ? nullptr : "bad mix";
    if (step.op == ADD_NORMED) return step.columns > 0 && step.norm.base != NONE ? nullptr : "bad norm";
    if (step.columns < 1 || step.matrices < 1 || step.matrices > MOST_MATRICES) return "bad shape";
    if (step.op == GATED && (step.matrices != 2 || step.matrix[0].rows != step.matrix[1].rows)) return "bad gate";
    if (step.activation != SILU && step.activation != GELU) return "unknown activation";
    if (step.op == ROUTE) {
        if (step.used < 1 || step.used > step.matrix[0].rows || step.matrix[0].rows > MOST_EXPERTS) return "bad router";
    }
    if (step.op == EXPERT) {
        if (step.matrices != 3 || step.matrix[0].rows != step.matrix[1].rows || step.used < 1) return "bad expert";
        if (step.matrix[2].rows != step.columns) return "bad expert";
    }
    for (int m = 0; m < step.matrices; m++) {
        const int64_t columns = step.op == EXPERT && m == 2 ? step.matrix[0].rows : step.columns;
        if (const char* wrong = check_vector(step.matrix[m].bias)) return wrong;
        if (!row_bytes(step.matrix[m].data.type, columns)) return "unknown type, or a row of broken blocks";
    }
    return nullptr;
}

float* scores_at(const CpuPass& pass, const CpuStep& step) {
    return reinterpret_cast<float*>(pass.scores) + step.first;
}

void run_linear(Stage& stage, const CpuStep& step) {
    const bool scores = step.op == SCORE;
    const CpuPass& pass = stage.pass;
    Linear call{};
    call.x = stage.value(step.x);
    call.picked = scores ? reinterpret_cast<const int64_t*>(pass.wanted) : nullptr;
    call.norm = vector(stage, step.norm, step.columns);
    call.rows = scores ? pass.wanted_count : pass.rows;
    call.columns = step.columns;
    call.epsilon = static_cast<float>(step.epsilon);
    call.mode = step.op == GATED ? Mode::GATED : step.op == ADD ? Mode::ADD : Mode::STORE;
    call.activation = static_cast<CpuActivation>(step.activation);
    call.matrices = step.matrices;
    if (call.rows == 0) return;
    for (int m = 0; m < step.matrices; m++) {
        const CpuMatrix& matrix = step.matrix[m];
        float* y = scores ? scores_at(pass, step) : stage.value(matrix.out);
        call.matrix[m] = {stage.address(matrix.data), matrix.rows, matrix.data.type, y,
                          scores ? pass.vocabulary : matrix.rows, vector(stage, matrix.bias, matrix.rows)};
    }
    linear(stage.context, call);
}

void run_attend(Stage& stage, const CpuStep& step) {
    const CpuPass& pass = stage.pass;
    const CpuGroup& group = reinterpret_cast<const CpuGroup*>(pass.groups)[step.group];
    const int64_t half = step.kv_heads * step.dim * PAGE_TOKENS;  // the layer's keys in a page, and its values
    Attend call{};
    call.q = stage.value(step.q);
    call.k = stage.value(step.k);
    call.v = stage.value(step.v);
    call.out = stage.value(step.out);
    call.keys = reinterpret_cast<uint16_t*>(group.memory) + 2 * step.layer * half;
    call.values = call.keys + half;
    call.page_stride = group.page_bytes / static_cast<int64_t>(sizeof(uint16_t));
    call.stretches = reinterpret_cast<const Stretch*>(group.stretches);
    call.pages = reinterpret_cast<const int64_t*>(group.pages);
    call.cos = stage.angles(2 * step.rope);
    call.sin = stage.angles(2 * step.rope + 1);
    call.q_norm = vector(stage, step.q_norm, step.dim);
    call.k_norm = vector(stage, step.k_norm, step.dim);
    call.stretch_count = pass.stretch_count;
    call.heads = step.heads;
    call.kv_heads = step.kv_heads;
    call.dim = step.dim;
    call.epsilon = static_cast<float>(step.epsilon);
    call.window = step.window;
    call.scale = static_cast<float>(step.scale);
    call.interleaved = step.interleaved;
    attend(stage.context, call);
}

// x += norm of h, row by row.
void run_add_normed(Stage& stage, const CpuStep& step) {
    const float* weight = vector(stage, step.norm, step.columns);
    float *h = stage.value(step.x), *x = stage.value(step.out);
    const float epsilon = static_cast<float>(step.epsilon);
    stage.context.pool.run(stage.pass.rows, [&](int64_t row, int) {
        float *from = h + row * step.columns, *to = x + row * step.columns;
        stage.context.kernels.norm(from, weight, step.columns, epsilon, from);
        for (int64_t i = 0; i < step.columns; i++) to[i] += from[i];
    });
}

// h = norm of x; the experts of each row and their weights, by its scores.
void run_route(Stage& stage, const CpuStep& step) {
    const CpuPass& pass = stage.pass;
    Context& context = stage.context;
    const float *weight = vector(stage, step.norm, step.columns), *x = stage.value(step.x);
    const float epsilon = static_cast<float>(step.epsilon);
    float *h = stage.value(step.out), *weights = stage.value(step.weights);
    context.pool.run(pass.rows, [&](int64_t row, int) {
        context.kernels.norm(x + row * step.columns, weight, step.columns, epsilon, h + row * step.columns);
    });
    const int64_t count = step.matrix[0].rows, stride = round_up(count, STRANDS);
    float* scores = context.routed.at_least(static_cast<size_t>(pass.rows * stride));
    Linear call{};
    call.x = h;
    call.rows = pass.rows;
    call.columns = step.columns;
    call.matrices = 1;
    call.matrix[0] = {stage.address(step.matrix[0].data), count, step.matrix[0].data.type, scores, stride,
                      vector(stage, step.matrix[0].bias, count)};
    linear(context, call);
    int32_t* experts = reinterpret_cast<int32_t*>(pass.routing);
    context.pool.run(pass.rows, [&](int64_t row, int) {
        context.kernels.choose(scores + row * stride, count, step.used, experts + row * step.used,
                               weights + row * step.used);
    });
}

void run_mix(Stage& stage, const CpuStep& step) {
    const float *parts = stage.value(step.out), *weights = stage.value(step.weights);
    float* x = stage.value(step.x);
    stage.context.pool.run(stage.pass.rows, [&](int64_t row, int) {
        stage.context.kernels.mix(parts + row * step.used * step.columns, weights + row * step.used, step.used,
                                  step.columns, x + row * step.columns);
    });
}

// True when no element is NaN or infinite.
bool finite(const float* x, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t raw;
        std::memcpy(&raw, x + i, sizeof raw);
        bad |= (raw & 0x7f800000) == 0x7f800000;
    }
    return bad == 0;
}

// What the last step of a stage left: the hidden state, or its columns of the scores.
bool sound(const Stage& stage, const CpuStep& last) {
    const CpuPass& pass = stage.pass;
    if (last.op != SCORE) return finite(stage.value(0), pass.rows * pass.width);
    for (int64_t row = 0; row < pass.wanted_count; row++) {
        if (!finite(scores_at(pass, last) + row * pass.vocabulary, last.matrix[0].rows)) return false;
    }
    return true;
}

}  // namespace
