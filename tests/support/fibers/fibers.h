// How do the threads of a card's block run on one thread of a processor? As fibers that take turns where they wait.
//
// By ucontext(3); on x86-64 by a few instructions (System V ABI, section
// 3.2.1: what a callee must keep), where swapcontext(3) makes two system calls.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

namespace fibers {

struct Launch {
    int32_t blocks[3], threads;
    int64_t memory;
};

#if defined(__x86_64__)
// Keeps what a callee must, leaves its stack at *from, and goes on where `to` was left.
extern "C" void fiber_switch(void** from, void* to);
asm(".text\n.weak fiber_switch\n.type fiber_switch,@function\nfiber_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

// Where a fiber, or who runs them, was left.
struct Place {
    void* stack = nullptr;

    void begin(char* bottom, size_t size, void (*entry)()) {
        void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(bottom + size) & ~uintptr_t{15});
        // The entry finds its stack as after a call: 8 bytes beside a multiple of 16.
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        stack = top - 6;
    }
    void go_to(Place& other) { fiber_switch(&stack, other.stack); }
};
#else
struct Place {
    ucontext_t context{};

    void begin(char* bottom, size_t size, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = bottom;
        context.uc_stack.ss_size = size;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void go_to(Place& other) { swapcontext(&context, &other.context); }
};
#endif

constexpr size_t STACK = 256 << 10, EXCHANGE = 32 * 64;

struct Fiber {
    int thread = 0;
    bool ended = false;
    Place place;
    std::unique_ptr<char[]> stack{new char[STACK]};
    // Fetches that were begun, batch by batch; the last is not sealed.
    std::deque<std::vector<std::pair<void*, const void*>>> batches{1};

    void fetch(void* to, const void* from) { batches.back().emplace_back(to, from); }
    void seal() { batches.emplace_back(); }
    void arrived(int left) {
        while (static_cast<int>(batches.size()) - 1 > left) {
            for (const auto& [to, from] : batches.front()) std::memcpy(to, from, 16);
            batches.pop_front();
        }
    }
};

struct Warp {
    int count = 0;
    int64_t turn = 0;
    alignas(16) char in[EXCHANGE], out[EXCHANGE];
};

struct Barrier {
    int count = 0;
    int64_t turn = 0;
};

// The block that runs.
struct Block {
    Launch launch;
    int32_t number[3];
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barriers[16];
    std::vector<uint8_t> memory;
    void (*entry)(const void*);
    const void* call;
    Fiber* current;
    Place home;
    int alive;
    int64_t steps;   // what was done at all: where a round adds nothing, all wait for ever
    int64_t serial;  // its number among all blocks of the process, from 1 on
};

inline Block*& block_now() {
    static Block* block;
    return block;
}
inline Fiber& now() { return *block_now()->current; }
inline const Launch& launch() { return block_now()->launch; }
inline int block(int axis) { return block_now()->number[axis]; }
inline int alive() { return block_now()->alive; }
inline uint8_t* memory() { return block_now()->memory.data(); }

// Fills with NaN what a block finds in its memory, when the first of its threads comes by.
inline void spoil(void* memory, size_t size, int64_t& of_block) {
    if (of_block == block_now()->serial) return;
    of_block = block_now()->serial;
    std::memset(memory, 0xff, size);
}

inline void yield() {
    now().place.go_to(block_now()->home);
}

inline void barrier(int number, int count, bool waits) {
    Barrier& at = block_now()->barriers[number];
    const int64_t turn = at.turn;
    block_now()->steps++;
    if (++at.count == count) {
        at.count = 0;
        at.turn++;
    }
    while (waits && at.turn == turn) yield();
}

// What a warp does together: `all` makes each lane's result of what every lane brought.
template <class In, class Out = In, class All> inline Out together(const In& mine, All all) {
    static_assert(sizeof(In) * 32 <= EXCHANGE && sizeof(Out) * 32 <= EXCHANGE);
    Block& block = *block_now();
    Warp& warp = block.warps[static_cast<size_t>(now().thread / 32)];
    const int lane = now().thread % 32;
    const int64_t turn = warp.turn;
    std::memcpy(warp.in + lane * sizeof(In), &mine, sizeof mine);
    block.steps++;
    if (++warp.count == 32) {
        warp.count = 0;
        warp.turn++;
        all(reinterpret_cast<const In*>(warp.in), reinterpret_cast<Out*>(warp.out));
    }
    while (warp.turn == turn) yield();
    Out found;
    std::memcpy(&found, warp.out + lane * sizeof(Out), sizeof found);
    return found;
}

inline void begin() {
    Block& block = *block_now();
    block.entry(block.call);
    Fiber& self = now();
    self.ended = true;
    block.alive--;
    block.steps++;
    self.place.go_to(block.home);
}

// All threads of a block until they have ended. False: they wait for each other for ever.
inline bool run_block(Block& block) {
    for (Fiber& fiber : block.fibers) {
        fiber.ended = false;
        fiber.batches.assign(1, {});
        fiber.place.begin(fiber.stack.get(), STACK, begin);
    }
    block.alive = block.launch.threads;
    bool backwards = block.serial % 2;  // whose turn it is first: what lacks a barrier shows in one of both ways
    static int64_t blocks = 0;
    block.serial = ++blocks;
    std::memset(block.memory.data(), 0xff, block.memory.size());
    for (Barrier& barrier : block.barriers) barrier = {};
    for (Warp& warp : block.warps) warp.count = 0;
    while (block.alive > 0) {
        const int64_t before = block.steps;
        const size_t count = block.fibers.size();
        for (size_t i = 0; i < count; i++) {
            Fiber& fiber = block.fibers[backwards ? count - 1 - i : i];
            if (fiber.ended) continue;
            block.current = &fiber;
            block.home.go_to(fiber.place);
        }
        backwards = !backwards;
        if (block.steps == before) return false;
    }
    return true;
}

// Every block of a launch, one after the other. 0, or 2 where threads wait for ever.
inline int run(const Launch& launch, void (*entry)(const void*), const void* call) {
    Block block{launch, {}, std::vector<Fiber>(static_cast<size_t>(launch.threads)),
                std::vector<Warp>(static_cast<size_t>(launch.threads + 31) / 32), {},
                std::vector<uint8_t>(static_cast<size_t>(launch.memory) + 128), entry, call, nullptr, {}, 0, 0, 0};
    for (int i = 0; i < launch.threads; i++) block.fibers[static_cast<size_t>(i)].thread = i;
    block_now() = &block;
    for (int z = 0; z < launch.blocks[2]; z++) {
        for (int y = 0; y < launch.blocks[1]; y++) {
            for (int x = 0; x < launch.blocks[0]; x++) {
                block.number[0] = x, block.number[1] = y, block.number[2] = z;
                if (!run_block(block)) return 2;
            }
        }
    }
    return 0;
}

}  // namespace fibers
