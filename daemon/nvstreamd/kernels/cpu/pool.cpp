// How do helpers start within a microsecond and still burn nothing while the engine waits for a read?
//
// A helper looks for the next round of work for about as long as Python needs between two calls, then sleeps on a
// condition. The caller waits for the last helper in the same way.
#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int SPINS = 2000;  // some 30 microseconds: a pause takes 40 to 140 cycles

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

template <class Condition> bool spin(const Condition& holds) {
    for (int i = 0; i < SPINS; i++) {
        if (holds()) return true;
        pause();
    }
    return false;
}

}  // namespace

Pool::Pool(int threads) {
    try {
        for (int thread = 1; thread < threads; thread++) helpers.emplace_back([this, thread] { help(thread); });
    } catch (...) {
        stop();  // those that did start wait for work that never comes
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        stopping = true;
    }
    wake.notify_all();
    for (std::thread& helper : helpers) helper.join();
}

void Pool::drain(int thread) {
    const int64_t count = items.load(std::memory_order_relaxed);
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*work)(item, thread);
}

void Pool::help(int thread) {
    uint64_t seen = 0;
    const auto called = [&] { return round.load() != seen || stopping.load(); };
    for (;;) {
        if (!spin(called)) {
            std::unique_lock<std::mutex> lock(mutex);
            asleep++;
            wake.wait(lock, called);
            asleep--;
        }
        if (stopping) return;
        seen = round;
        // Who comes too late finds the round closed, and nobody waits for them.
        busy++;
        if (open) drain(thread);
        if (--busy == 0 && waiting) {
            const std::lock_guard<std::mutex> lock(mutex);
            done.notify_one();
        }
    }
}

void Pool::run(int64_t count, const std::function<void(int64_t, int)>& job) {
    if (count <= 1 || helpers.empty()) {
        for (int64_t item = 0; item < count; item++) job(item, 0);
        return;
    }
    work = &job;
    items = count;
    next = 0;
    open = true;
    round++;
    if (asleep) {
        const std::lock_guard<std::mutex> lock(mutex);
        wake.notify_all();
    }
    drain(0);
    open = false;
    const auto finished = [this] { return busy.load() == 0; };
    if (spin(finished)) return;
    std::unique_lock<std::mutex> lock(mutex);
    waiting = true;
    done.wait(lock, finished);
    waiting = false;
}
