// What do all calls of an open library share? Threads, and memory that grows to what was needed most.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "pool.h"
#include "shapes.h"

namespace {

struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

// Memory that grows and is never smaller again.
template <class T> class Scratch {
public:
    T* at_least(size_t count) {
        if (count > capacity) {
            memory.reset();
            capacity = 0;
            memory.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
            capacity = count;
        }
        return memory.get();
    }
    T* get() const { return memory.get(); }

private:
    std::unique_ptr<T, Free> memory;
    size_t capacity = 0;
};

struct Context {
    const Kernels& kernels;
    Pool pool;
    std::mutex mutex;
    Scratch<float> normed, routed, gated;
    Scratch<Block> blocks;
    std::vector<Scratch<float>> own;
    std::vector<Stretch> stretches;

    Context(const Kernels& k, int threads) : kernels(k), pool(threads), own(static_cast<size_t>(threads)) {}

    // Memory of its own for each thread, before they start: a job must not throw, others would still be at work.
    void give_each(size_t floats) {
        for (Scratch<float>& scratch : own) scratch.at_least(floats);
    }
};

}  // namespace
