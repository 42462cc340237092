// How fast does ggml's own CPU backend multiply? One product a line of standard input, one line of JSON back.
//
//   ggml_products THREADS COLUMNS ROWS
//       TYPE WIDTH      ROWS x COLUMNS weights of a GGUF type (its number), as a GGUF holds them, times WIDTH rows
//
// The weights lie in an ordinary CPU buffer: not repacked, as a slot of ours holds them.

#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr int64_t kDrawn = 64;  // rows that are drawn; the others repeat them

struct FreeContext { void operator()(ggml_context * context) const { ggml_free(context); } };
using Context = std::unique_ptr<ggml_context, FreeContext>;

std::vector<float> draw(int64_t count) {
    std::mt19937 source(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float & value : values) value = normal(source);
    return values;
}

// Weights of one type, quantised once.
std::vector<uint8_t> weights_of(ggml_type type, int64_t columns, int64_t rows) {
    const size_t row = ggml_row_size(type, columns);
    std::vector<uint8_t> weights(row * static_cast<size_t>(rows));
    const auto values = draw(kDrawn * columns);
    ggml_quantize_chunk(type, values.data(), weights.data(), 0, kDrawn, columns, nullptr);
    for (size_t at = row * kDrawn; at < weights.size(); at++) weights[at] = weights[at - row * kDrawn];
    return weights;
}

double product_seconds(ggml_type type, std::vector<uint8_t> & weights, int64_t columns, int64_t rows, int64_t width,
                       int threads) {
    const size_t memory = static_cast<size_t>(width * (rows + columns) * 4) + (64 << 20);
    const Context context(ggml_init({memory, nullptr, false}));
    ggml_tensor * x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, columns, width);
    const auto values = draw(columns * width);
    std::copy(values.begin(), values.end(), static_cast<float *>(x->data));
    ggml_set_no_alloc(context.get(), true);
    ggml_tensor * w = ggml_new_tensor_2d(context.get(), type, columns, rows);
    w->data = weights.data();
    ggml_set_no_alloc(context.get(), false);
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, ggml_mul_mat(context.get(), w, x));
    double seconds = 0;
    // The first run wakes the threads.
    for (int run = 0; run < 2; run++) {
        const auto begin = std::chrono::steady_clock::now();
        if (ggml_graph_compute_with_ctx(context.get(), graph, threads) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("ggml_graph_compute failed");
        }
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    return seconds;
}

}  // namespace

int main(int count, char ** arguments) {
    if (count != 4) {
        std::fprintf(stderr, "usage: ggml_products THREADS COLUMNS ROWS\n");
        return 2;
    }
    const int threads = std::stoi(arguments[1]);
    const int64_t columns = std::stoll(arguments[2]), rows = std::stoll(arguments[3]);
    std::vector<uint8_t> weights;
    int held = -1, number = 0;
    int64_t width = 0;
    while (std::cin >> number >> width) {
        const auto type = static_cast<ggml_type>(number);
        if (number != held) weights = weights_of(type, columns, rows);
        held = number;
        std::printf("{\"seconds\": %.9f}\n", product_seconds(type, weights, columns, rows, width, threads));
        std::fflush(stdout);
    }
    return 0;
}
