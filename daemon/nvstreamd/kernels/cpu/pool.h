// Which threads work? The caller and its helpers, which sleep while there is nothing to do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(helpers.size()) + 1; }

    // Calls work(item, thread) once for each item below `items`, in any order on any thread; returns when all are done.
    void run(int64_t items, const std::function<void(int64_t, int)>& work);

private:
    void help(int thread);
    void stop();
    void drain(int thread);

    std::vector<std::thread> helpers;
    const std::function<void(int64_t, int)>* work = nullptr;
    std::atomic<int64_t> next{0}, items{0};
    std::atomic<uint64_t> round{0};
    std::atomic<bool> open{false}, stopping{false}, waiting{false};
    std::atomic<int> busy{0}, asleep{0};
    std::mutex mutex;
    std::condition_variable wake, done;
};
