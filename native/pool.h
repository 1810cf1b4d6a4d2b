// The one pool of threads of the process. A region runs one function on all threads at once; inside, threads share work by
// fixed ranges and meet at barriers. Waiting threads spin for a moment and then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pelagos {

struct Range {
    int64_t begin, end;
};

// A number that threads wait on until it changes.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void raise();                      // changes the number and wakes all waiters
    void wait_beyond(uint32_t known);  // returns once the number is not `known`

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

class Barrier {
  public:
    explicit Barrier(int num_threads) : num_threads_(num_threads) {}
    void wait();

  private:
    const int num_threads_;
    std::atomic<int> arrived_{0};
    Signal passed_;
};

// One thread's view of a region.
class Team {
  public:
    Team(int index, int size, Barrier* barrier) : index(index), size(size), barrier_(barrier) {}
    const int index, size;

    // All threads have come here, and see what the others wrote before.
    void wait() const {
        if (size > 1) barrier_->wait();
    }

    // This thread's part of 0 .. n, in whole multiples of `grain` but for the last.
    Range share(int64_t n, int64_t grain = 1) const {
        int64_t units = (n + grain - 1) / grain;
        return {std::min(n, units * index / size * grain), std::min(n, units * (index + 1) / size * grain)};
    }

  private:
    Barrier* barrier_;
};

class Pool {
  public:
    explicit Pool(int num_threads);
    ~Pool();
    int size() const { return num_threads_; }

    // Runs `work` on all threads, the calling one with index 0, and returns when all are done. One region at a time: further
    // callers wait.
    void run(const std::function<void(const Team&)>& work);

  private:
    void serve(int index);

    const int num_threads_;
    std::mutex busy_;
    Barrier barrier_;
    Signal started_;
    std::atomic<bool> closing_{false};
    const std::function<void(const Team&)>* work_ = nullptr;
    std::vector<std::thread> workers_;
};

// The process's pool; set_num_threads replaces it and must not be called while a region runs.
Pool& pool();
void set_num_threads(int num_threads);

}  // namespace pelagos
