// What can be called from Python? Plain functions over addresses; those that can fail return 0, or a text.
#include <algorithm>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "angles.h"
#include "pool.h"
#include "steps.h"

extern const Kernels nv_portable;
#if defined(__x86_64__)
extern const Kernels nv_avx2, nv_avx512, nv_avx512_vnni;
#endif

namespace {

// The best first.
const Kernels* const KERNELS[] = {
#if defined(__x86_64__)
    &nv_avx512_vnni, &nv_avx512, &nv_avx2,
#endif
    &nv_portable,
};
constexpr int KERNEL_COUNT = sizeof KERNELS / sizeof *KERNELS;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int32_t nv_abi() { return NV_ABI; }

int32_t nv_kernel_count() { return KERNEL_COUNT; }

const char* nv_kernel_name(int32_t kernel) { return KERNELS[kernel]->name; }

int32_t nv_kernel_usable(int32_t kernel) { return KERNELS[kernel]->usable(); }

Context* nv_open(int32_t kernel, int32_t threads) {
    try {
        return new Context(*KERNELS[kernel], threads);
    } catch (...) {
        return nullptr;
    }
}

void nv_close(Context* context) { delete context; }

// Whether the steps of a stage can be run, once, before they are.
const char* nv_check(const CpuStep* steps, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (const char* wrong = check(steps[i])) return wrong;
    }
    return count > 0 ? nullptr : "no steps";
}

// The steps of stage `number`, one after the other, with the weights at an address.
const char* nv_run(Context* context, const CpuStep* steps, int64_t count, int64_t number, const uint8_t* weights,
                   CpuPass* pass) {
    try {
        const std::lock_guard<std::mutex> lock(context->mutex);
        Stage stage{*context, *pass, weights};
        for (int64_t i = 0; i < count; i++) {
            switch (steps[i].op) {
                case ATTEND: run_attend(stage, steps[i]); break;
                case ADD_NORMED: run_add_normed(stage, steps[i]); break;
                case ROUTE: run_route(stage, steps[i]); break;
                case MIX: run_mix(stage, steps[i]); break;
                default: run_linear(stage, steps[i]);
            }
        }
        if (pass->unsound < 0 && !sound(stage, steps[count - 1])) pass->unsound = number;
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "out of memory";
    }
}

// What so many experts compute of the rows that they serve, each with its own weights; steps are those of one layer.
const char* nv_experts(Context* context, const CpuVisit* visits, int64_t count, CpuPass* pass) {
    try {
        const std::lock_guard<std::mutex> lock(context->mutex);
        const CpuStep& step = *reinterpret_cast<const CpuStep*>(visits->step);
        const Stage stage{*context, *pass, nullptr};
        ExpertsAtWork{*context, gather(visits, count), stage.value(step.x), stage.value(step.out), step.columns,
                      step.matrix[0].rows, step.used}.run();
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "out of memory";
    }
}

void nv_angles(const double* frequencies, int64_t pairs, double magnitude, const int64_t* positions, int64_t rows,
               float* cosines, float* sines) {
    turn_all(frequencies, pairs, magnitude, positions, rows, cosines, sines);
}

// Calls a function until it does not return `pending`, `seconds` at most; its last answer. It is asked without pause for
// `eager` seconds, then 20,000 times a second. Python calls this instead of asking by itself, for whoever asks there
// keeps all other threads of the process from running.
int32_t nv_ask(int32_t (*function)(void*), void* of, int32_t pending, double seconds, double eager) {
    using Clock = std::chrono::steady_clock;
    const auto began = Clock::now();
    for (;;) {
        const int32_t answer = function(of);
        const double waited = std::chrono::duration<double>(Clock::now() - began).count();
        if (answer != pending || waited > seconds) return answer;
        if (waited >= eager) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

// Reads all bytes with all threads, in pieces; the result only keeps the loads alive.
float nv_read(Context* context, const uint8_t* data, int64_t bytes) {
    constexpr int64_t piece = 1 << 20;
    std::vector<float> found(static_cast<size_t>(context->pool.threads()));
    context->pool.run((bytes + piece - 1) / piece, [&](int64_t item, int thread) {
        found[static_cast<size_t>(thread)] +=
            context->kernels.read(data + item * piece, std::min(piece, bytes - item * piece));
    });
    return found[0];
}

}  // extern "C"
#pragma GCC visibility pop
